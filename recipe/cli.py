"""The command line of both trainers: MODEL [--preset NAME] and one flag per configuration field."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import tyro

from recipe.config import MODELS, Config, from_dict, to_dict
from recipe.errors import UserError
from recipe.presets import DEFAULTS, PRESETS

Options = TypeVar("Options")

FLAT = (tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands)


def parse_train_config(prog: str, argv: list[str], run_prefix: str) -> Config:
    """The configuration that a command line asks for.

    argv: what follows the program's name. run_prefix: the trainer's name in default run directories.
    With --resume the run's own configuration takes the place of the preset, and flags that contradict it raise
    UserError, as does every other bad flag. --help prints and exits 0.
    """
    model, preset, rest = _split_model(argv)
    if "--resume" in rest:
        return _parse_resumed(prog, model, rest, run_prefix)
    config = parse_flags(prog, preset, rest)
    if config.output.out_dir is None:
        config = replace(config, output=replace(config.output, out_dir=str(_free_run(run_prefix, config))))
    return config


def parse_flags(prog: str, default: Options, argv: list[str]) -> Options:
    """Flags over a dataclass of defaults. tyro's complaint of several lines becomes one UserError."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(type(default), prog=prog, default=default, args=argv, config=FLAT)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        words = re.sub(r"[^\x20-\x7e]+|\x1b\[[0-9;]*m", " ", complaint.getvalue())
        words = re.sub(r"-{3,}|Argument helptext.*|For full helptext.*", " ", words.replace("\n", " "))
        words = re.sub(r"^\s*(Unrecognized options|Value error|Invalid choice|Parsing error)\s+", "", words)
        raise UserError(f"{' '.join(words.split())} (see {prog} --help)") from None


def _split_model(argv: list[str]) -> tuple[str, Config, list[str]]:
    """MODEL, the configuration to start from, and the remaining flags."""
    model, rest = "gpt", list(argv)
    if rest and not rest[0].startswith("-"):
        model = rest.pop(0)
    if model not in MODELS:
        raise UserError(f"unknown model {model!r}; choose one of {', '.join(MODELS)}")
    default = DEFAULTS[model]
    names = [word.partition("=")[0] for word in rest]
    if "--preset" in names:
        at = names.index("--preset")
        given = rest[at].partition("=")[2] if "=" in rest[at] else (rest[at + 1 : at + 2] or [""])[0]
        del rest[at : at + (1 if "=" in rest[at] else 2)]
        if given not in PRESETS or PRESETS[given].model_name != model:
            known = [name for name, preset in PRESETS.items() if preset.model_name == model]
            raise UserError(f"unknown preset {given!r} of {model}; choose one of {known or 'none: it has no presets'}")
        default = PRESETS[given]
    if "--help" in names or "-h" in names:
        presets = ", ".join(PRESETS)
        print(f"MODEL is one of {', '.join(MODELS)} (gpt when left out); --preset is one of {presets} (gpt only).")
        print("The flags below are those of the model chosen, with its defaults.\n")
    return model, default, rest


def _parse_resumed(prog: str, model: str, rest: list[str], run_prefix: str) -> Config:
    out_dir = parse_flags(prog, DEFAULTS[model], rest).output.out_dir
    run = Path(out_dir) if out_dir is not None else _newest_run(run_prefix, model)
    saved = read_run_config(run)
    if saved.model_name != model:
        raise UserError(f"{run} holds a run of {saved.model_name}, not of {model}; pass that model's name")
    saved = replace(saved, output=replace(saved.output, out_dir=str(run), resume=True))
    config = parse_flags(prog, saved, rest)
    for part in ("model", "data", "optimizer", "train"):
        ours, theirs = to_dict(config)[part], to_dict(saved)[part]
        for name in ours:
            if ours[name] != theirs[name]:
                raise UserError(
                    f"--{name.replace('_', '-')} is {ours[name]}, but the run in {run} has {theirs[name]}; "
                    "leave the flag out, or start a new run in another --out-dir"
                )
    return config


def read_run_config(run: Path) -> Config:
    """The configuration in a run directory. Raises UserError where there is none or it is damaged."""
    path = run / "config.json"
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"no run in {run}: it has no config.json; check --out-dir") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _free_run(prefix: str, config: Config) -> Path:
    number = 1
    while (run := Path("runs") / f"{prefix}-{config.model_name}-{number}").exists():
        number += 1
    return run


def _newest_run(prefix: str, model: str) -> Path:
    runs = list(Path("runs").glob(f"{prefix}-{model}-*/config.json"))
    if not runs:
        raise UserError(f"nothing to resume: no runs/{prefix}-{model}-* here; pass --out-dir")
    return max(runs, key=lambda path: path.stat().st_mtime).parent
