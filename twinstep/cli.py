"""The command line of both trainers: MODEL [--preset NAME] and one flag per configuration field."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import tyro

from twinstep import pretrained
from twinstep.config import MODELS, Config, CorpusConfig, flag, from_dict, to_dict
from twinstep.data import load_tokenizer
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS, PRESETS
from twinstep.pretrained.start import check_model, check_preset, check_tokenizer, with_model
from twinstep.progress import HORIZON, PLACES
from twinstep.run_dir import TOKENIZER, checkpoint_steps, has_no_data

Options = TypeVar("Options")

FLAT = (tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands)


def parse_train_config(prog: str, argv: list[str], run_prefix: str) -> Config:
    """The configuration that a command line asks for.

    argv: what follows the program's name. run_prefix: how the run directories begin that --resume looks for.
    With --resume the run's own configuration takes the place of the preset, and flags that contradict it raise
    UserError, as does every other bad flag. With --init-from the model is the folder's. --help prints and exits 0.
    """
    model, preset, rest = _split_model(argv)
    default = DEFAULTS[model] if preset is None else PRESETS[preset]
    source, _ = _find_value(rest, "init-from")
    if "--resume" in rest and not {"--help", "-h"} & set(rest):
        return _parse_resumed(prog, model, preset, rest, run_prefix)
    if source is not None:
        named = model if argv[0] == model else None
        config = _parse_with_model(prog, named, preset, rest, Path(source))
    else:
        config = parse_flags(prog, default, rest)
    _check_bpe_size(config, rest)
    if config.output.extend_to is not None:
        raise UserError("--extend-to goes on with a run that is there; pass --resume and its --out-dir too")
    return config


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


def _parse_with_model(prog: str, model: str | None, preset: str | None, rest: list[str], source: Path) -> Config:
    found = pretrained.read_config(source)
    if model not in (None, found.model_name):
        raise UserError(f"{source} holds a model of {found.model_name}, not of {model}; pass that name, or none")
    base = DEFAULTS[found.model_name]
    if preset is not None:
        base = PRESETS[preset]
        check_preset(preset, base, found, source)
    config = parse_flags(prog, with_model(base, found), rest)
    check_model(config, found, source)
    check_tokenizer(config, found, source)
    return config


def _parse_resumed(prog: str, model: str, preset: str | None, rest: list[str], run_prefix: str) -> Config:
    out_dir, _ = _find_value(rest, "out-dir")
    run = Path(out_dir) if out_dir is not None else _newest_run(run_prefix, model)
    saved = read_run_config(run)
    if saved.model_name != model:
        raise UserError(f"{run} holds a run of {saved.model_name}, not of {model}; pass that model's name")
    # Coordinator, processes and the steps to profile belong to one start of a run: they are not taken over.
    devices = replace(saved.devices, coordinator=None, num_processes=None, process_id=None)
    saved = replace(saved, devices=devices, output=replace(saved.output, out_dir=str(run), resume=True, profile=None))
    if isinstance(saved.data, CorpusConfig) and has_no_data(run) and _find_value(rest, "data")[0] is None:
        raise UserError(
            f"the model in {run} was imported and has no data; pass --data, or --init-from {run} for a new run with "
            "flags of its own"
        )
    config = _with_own_tokenizer(parse_flags(prog, saved, rest), saved, run)
    _check_same(config, saved, run)
    if saved.train.init_from is None and config.train.init_from is not None:
        raise UserError(f"--init-from begins a new run, and {run} holds one; leave --resume out, or --init-from")
    if preset is not None:
        asked = _with_own_tokenizer(parse_flags(prog, PRESETS[preset], rest), saved, run)
        _check_same(_as_recorded(asked, saved), saved, run)
    return config if _find_value(rest, "extend-to")[0] is None else _extended(config, run)


def _extended(config: Config, run: Path) -> Config:
    """The configuration of a run that goes on to --extend-to, whatever set its horizon before."""
    steps, saved = config.output.extend_to, checkpoint_steps(run)
    assert steps is not None
    if not saved:
        raise UserError(f"the run in {run} has no finished checkpoint to go on from; pass --resume without --extend-to")
    if steps <= saved[-1]:
        raise UserError(f"--extend-to is {steps}, but the run in {run} is at step {saved[-1]}; pass a later step")
    return replace(config, train=replace(config.train, steps=steps, target_flops=None, tokens_per_parameter=None))


def _check_bpe_size(config: Config, flags: list[str]) -> None:
    """Raises UserError for a size that a given tokenizer.json cannot take."""
    size, _ = _find_value(flags, "bpe-vocab-size")
    if size is not None and isinstance(config.data, CorpusConfig) and config.data.tokenizer_file is not None:
        raise UserError(f"--bpe-vocab-size is {size}, but {config.data.tokenizer} has its own size; leave it out")


def _with_own_tokenizer(config: Config, saved: Config, run: Path) -> Config:
    """A resumed run uses its copy of the tokenizer.json that it began with; that may be named again, and be gone."""
    data, copy = config.data, run / TOKENIZER
    if not isinstance(data, CorpusConfig) or not isinstance(saved.data, CorpusConfig):
        return config
    if data.tokenizer_file is None or saved.data.tokenizer != "bpe":
        return config
    if data.tokenizer_file.exists() and copy.exists():
        given = load_tokenizer(data.tokenizer_file, f"leave --tokenizer out: the run in {run} has its own")
        if given.identity != load_tokenizer(copy).identity:
            raise UserError(f"--tokenizer {data.tokenizer} is not that of the run in {run}; leave the flag out")
    return replace(config, data=replace(data, tokenizer="bpe", bpe_vocab_size=saved.data.bpe_vocab_size))


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
    if saved.output.extend_to is not None:
        train = replace(train, **{name: getattr(saved.train, name) for name in HORIZON})
    elif train.target_flops is not None or train.tokens_per_parameter is not None:
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
