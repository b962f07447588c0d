"""What is checked when a model's name is given: configurations in which no part of the step is idle.

Weight decay, warm-up, warm-down and accumulation are on, and gradients are clipped in some steps and not in others; no
matrix is square that need not be, key/value heads are fewer than query heads, some targets are masked, documents are
so short that every batch holds BOS tokens, dropout masks are shared: a part that does nothing would agree with
anything. `parity.idle` says of every number whether it counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from twinstep.cli import parse_flags
from twinstep.config import (
    MODELS,
    Config,
    CorpusConfig,
    DataConfig,
    DeviceConfig,
    Dtype,
    EmbeddingConfig,
    LinearConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    TabularConfig,
    TrainConfig,
    flag,
)
from twinstep.errors import UserError
from twinstep.presets import PRESETS

CORPUS = str(Path(__file__).with_name("corpus.jsonl"))  # a thousand sentences, each a document

PARITY = PRESETS["parity"]
BUSY = PARITY.optimizer

# Each clip norm lies amid the norms of the first steps' gradients, from both initializations.
SUBJECTS: dict[str, Config] = {
    "gpt": replace(PARITY, data=CorpusConfig(data=CORPUS, sequence_len=64, masked_targets=0.2)),
    "linear": Config(
        model=LinearConfig(),
        data=TabularConfig(),
        optimizer=replace(BUSY, clip_norm=0.81),
        train=TrainConfig(batch_size=32, accumulation=2),
    ),
    "embedding": Config(
        model=EmbeddingConfig(d_model=24),
        data=CorpusConfig(data=CORPUS, sequence_len=16, masked_targets=0.2),
        optimizer=replace(BUSY, clip_norm=0.75),
        train=TrainConfig(batch_size=8, accumulation=2),
    ),
    "mlp": Config(
        model=MLPConfig(hidden=48, shared_dropout=True),
        data=TabularConfig(),
        optimizer=replace(BUSY, clip_norm=1.75),
        train=TrainConfig(batch_size=32, accumulation=2),
    ),
}

STEPS = 10
LEAST_STEPS = 3  # from the native start, the zero projections pass on no gradient before the third step

# Flags of the trainers for which a check has no use, and why.
OF_NO_USE = {
    "init": "a check starts from both initializations",
    "init_from": "pass --run to start from weights of your own",
    "target_flops": "pass --steps",
    "tokens_per_parameter": "pass --steps",
    "eval_every": "a check evaluates once, at its end",
    "patience": "a check evaluates once, at its end",
}


@dataclass(frozen=True)
class Checked:
    """The parts of a configuration that a check takes flags for; see the trainers' own `--help`."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    parallel: Literal["auto", "jit", "pmap", "fsdp"] = "auto"
    """Of the port's step. jit: one device; pmap: data parallel; fsdp: parameters and optimizer state sharded too."""


def split_devices(words: Sequence[str]) -> tuple[list[str], int]:
    """The words of a command line without `--devices N`, and N, or 1."""
    rest = list(words)
    if "--devices" not in rest:
        return rest, 1
    at = rest.index("--devices")
    devices = int(rest[at + 1])
    del rest[at : at + 2]
    return rest, devices


def subject(model: str, dtype: Dtype = "float64", steps: int = STEPS, seed: int = 0) -> Config:
    """The configuration that `parity check MODEL` checks. Raises UserError for an unknown model or too few steps."""
    if model not in MODELS:
        raise UserError(f"unknown model {model!r}; choose one of {', '.join(MODELS)}")
    config = SUBJECTS[model]
    config = replace(config, train=replace(config.train, dtype=dtype, steps=steps, seed=seed, eval_batches=2))
    return with_flags(config, [])


def with_flags(config: Config, words: Sequence[str]) -> Config:
    """A configuration to check, changed by flags of the trainers ("--sequence-len", "512").

    Raises UserError for a flag that does not exist, is out of range or has no use in a check.
    """
    parallel = config.devices.parallel
    checked = Checked(config.model, config.data, config.optimizer, config.train, parallel)
    if words:
        checked = parse_flags(f"python -m jax_impl.train {config.model_name}", checked, list(words))
    for field in fields(TrainConfig):
        if field.name in OF_NO_USE and getattr(checked.train, field.name) != getattr(config.train, field.name):
            raise UserError(f"{flag(field.name)} has no use in a check; {OF_NO_USE[field.name]}")
    if checked.train.steps < LEAST_STEPS:
        raise UserError(f"--steps is {checked.train.steps}; a check needs at least {LEAST_STEPS}")
    return Config(
        model=checked.model,
        data=checked.data,
        optimizer=checked.optimizer,
        train=checked.train,
        devices=DeviceConfig(parallel=checked.parallel),
    )
