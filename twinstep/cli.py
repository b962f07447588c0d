"""The command line of both trainers: MODEL [--preset NAME] and one flag per configuration field."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import tyro

from twinstep.config import MODELS, Config, flag, from_dict, to_dict
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS, PRESETS
from twinstep.progress import PLACES

Options = TypeVar("Options")

FLAT = (tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands)


def parse_train_config(prog: str, argv: list[str], run_prefix: str) -> Config:
    """The configuration that a command line asks for.

    argv: what follows the program's name. run_prefix: how the run directories begin that --resume looks for.
    With --resume the run's own configuration takes the place of the preset, and flags that contradict it raise
    UserError, as does every other bad flag. --help prints and exits 0.
    """
    model, preset, rest = _split_model(argv)
    default = DEFAULTS[model] if preset is None else PRESETS[preset]
    if "--resume" in rest and not {"--help", "-h"} & set(rest):
        return _parse_resumed(prog, model, preset, rest, run_prefix)
    return parse_flags(prog, default, rest)


def place_run(config: Config, prefix: str) -> Config:
    """The configuration with its run directory: the first free runs/PREFIX-MODEL-N where none is given."""
    if config.output.out_dir is not None:
        return config
    number = 1
    while (run := Path("runs") / f"{prefix}-{config.model_name}-{number}").exists():
        number += 1
    return replace(config, output=replace(config.output, out_dir=str(run)))


def parse_flags(prog: str, default: Options, argv: list[str]) -> Options:
    """Flags over a dataclass of defaults. tyro's error message of several lines becomes one UserError."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(type(default), prog=prog, default=default, args=argv, config=FLAT)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        words = re.sub(r"[^\x20-\x7e]+|\x1b\[[0-9;]*m", " ", complaint.getvalue())
        words = re.sub(r"-{3,}|Argument helptext.*|For full helptext.*", " ", words.replace("\n", " "))
        words = re.sub(r"^\s*(Value error|Invalid choice|Parsing error|Missing argument)\s+", "", words)
        raise UserError(f"{' '.join(words.split())} (see {prog} --help)") from None


def _split_model(argv: list[str]) -> tuple[str, str | None, list[str]]:
    """MODEL, the name of the preset if one is asked for, and the remaining flags."""
    model, rest = "gpt", list(argv)
    if rest and not rest[0].startswith("-"):
        model = rest.pop(0)
    if model not in MODELS:
        raise UserError(f"unknown model {model!r}; choose one of {', '.join(MODELS)}")
    preset, at = _find_value(rest, "preset")
    if preset is not None:
        del rest[at]
        if preset not in PRESETS or PRESETS[preset].model_name != model:
            known = ", ".join(name for name, config in PRESETS.items() if config.model_name == model)
            mend = f"choose one of {known}" if known else f"{model} has none, leave --preset out"
            raise UserError(f"unknown preset {preset!r} of {model}; {mend}")
    if {"--help", "-h"} & set(rest):
        presets = ", ".join(PRESETS)
        print(f"MODEL is one of {', '.join(MODELS)} (gpt when left out); --preset is one of {presets} (gpt only).")
        print("The flags below are those of the model chosen, with its defaults.\n")
    return model, preset, rest


def _find_value(words: list[str], name: str) -> tuple[str | None, slice]:
    """The last value given for a flag, as `--name VALUE` or `--name=VALUE`, and its place; None if absent."""
    value, place = None, slice(0, 0)
    for at, word in enumerate(words):
        key, equals, rest = word.partition("=")
        if key.replace("_", "-") == "--" + name:
            value = rest if equals else "".join(words[at + 1 : at + 2])
            place = slice(at, at + (1 if equals else 2))
    return value, place


def _parse_resumed(prog: str, model: str, preset: str | None, rest: list[str], run_prefix: str) -> Config:
    out_dir, _ = _find_value(rest, "out-dir")
    run = Path(out_dir) if out_dir is not None else _newest_run(run_prefix, model)
    saved = read_run_config(run)
    if saved.model_name != model:
        raise UserError(f"{run} holds a run of {saved.model_name}, not of {model}; pass that model's name")
    # Coordinator and processes belong to one start of a run: they are not taken over.
    devices = replace(saved.devices, coordinator=None, num_processes=None, process_id=None)
    saved = replace(saved, devices=devices, output=replace(saved.output, out_dir=str(run), resume=True))
    config = parse_flags(prog, saved, rest)
    _check_same(config, saved, run)
    if preset is not None:
        _check_same(_as_recorded(parse_flags(prog, PRESETS[preset], rest), saved), saved, run)
    return config


def _check_same(config: Config, saved: Config, run: Path) -> None:
    """Raises UserError for the first field that would change what a run computes; paths to its data may change."""
    for part in ("model", "data", "optimizer", "train"):
        ours, theirs = to_dict(config)[part], to_dict(saved)[part]
        for name in ours:
            if ours[name] != theirs[name] and name not in PLACES:
                raise UserError(
                    f"{flag(name)} is {ours[name]}, but the run in {run} has {theirs[name]}; "
                    "leave the flag out, or start a new run in another --out-dir"
                )


def _as_recorded(config: Config, saved: Config) -> Config:
    """A preset's configuration with what a run fills in: sizes that come from the data, steps from another horizon."""
    sizes = {
        name: value
        for name, value in vars(saved.model).items()
        if name in ("vocab_size", "features", "classes") and getattr(config.model, name, value) is None
    }
    train = config.train
    if train.target_flops is not None or train.tokens_per_parameter is not None:
        train = replace(train, steps=saved.train.steps)
    return replace(config, model=replace(config.model, **sizes), train=train)


def read_run_config(run: Path) -> Config:
    """The configuration in a run directory. Raises UserError where there is none or it is damaged."""
    path = run / "config.json"
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"no run in {run}: it has no config.json; check --out-dir") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _newest_run(prefix: str, model: str) -> Path:
    runs = list(Path("runs").glob(f"{prefix}-{model}-*/config.json"))
    if not runs:
        raise UserError(f"nothing to resume: no runs/{prefix}-{model}-* here; pass --out-dir")
    return max(runs, key=lambda path: path.stat().st_mtime).parent
