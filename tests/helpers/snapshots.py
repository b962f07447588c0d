"""Small models with random weights and moments, as if trained, for the tests of conversion."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from parity.convert import read, write
from parity.formats.snapshot import Snapshot, optimizer_shapes_of, weight_shapes_of
from twinstep.config import (
    Config,
    CorpusConfig,
    EmbeddingConfig,
    GPTConfig,
    LinearConfig,
    MLPConfig,
    OptimizerConfig,
    TabularConfig,
    TrainConfig,
)
from twinstep.progress import first_facts

GPT = Config(
    model=GPTConfig(depth=2, d_model=32, head_dim=8, kv_heads=2, vocab_size=256),
    data=CorpusConfig(sequence_len=32),
    train=TrainConfig(steps=20, batch_size=4),
)
CONFIGS = {
    "gpt": GPT,
    "gpt-float64": replace(GPT, train=replace(GPT.train, dtype="float64")),
    "gpt-bfloat16": replace(GPT, train=replace(GPT.train, dtype="bfloat16")),
    "gpt-adamw": replace(GPT, optimizer=OptimizerConfig(optimizer="adamw", weight_decay=0.1, clip_norm=0.0)),
    "embedding-sgd": Config(
        model=EmbeddingConfig(d_model=8, vocab_size=256), optimizer=OptimizerConfig(matrix_optimizer="sgd")
    ),
    "linear": Config(model=LinearConfig(features=30, classes=2, head="sigmoid"), data=TabularConfig("breast_cancer")),
    "mlp": Config(model=MLPConfig(hidden=16, features=64, classes=10), data=TabularConfig()),
}


def make_snapshot(config: Config, step: int) -> Snapshot:
    """Every array random and of its own."""
    random = np.random.default_rng(step)

    def draw(shapes):
        # Second moments and variances are never negative.
        arrays = {name: random.standard_normal(shape).astype(config.param_dtype) for name, shape in shapes.items()}
        return {name: abs(a) if name.endswith(("_sq", "running_var")) else a for name, a in arrays.items()}

    facts = {**first_facts(config), "best_val_loss": 1.25, "best_step": step}
    moments = draw(optimizer_shapes_of(config)) if step else None
    files = {"data.json": b'{"sha256": "0"}\n', "metrics.jsonl": b'{"step": 0, "val_loss": 1.25, "val_bpb": 1.5}\n'}
    return Snapshot(config, step, draw(weight_shapes_of(config)), moments, facts, None, files)


def written(folder: Path, snapshot: Snapshot, format: str) -> Path:
    """A folder in one format."""
    folder.mkdir(parents=True)
    write(folder, snapshot, format, folder)
    return folder


def assert_same(found: Snapshot, expected: Snapshot, *, optimizer: bool = True) -> None:
    """Bit for bit; `optimizer`: all that belongs to training, too."""
    assert found.weights.keys() == expected.weights.keys()
    pairs = [(name, found.weights[name], array) for name, array in expected.weights.items()]
    assert found.config.model == expected.config.model
    if optimizer:
        assert (found.step, found.facts) == (expected.step, expected.facts)
        assert (found.optimizer or {}).keys() == (expected.optimizer or {}).keys()
        pairs += [(name, (found.optimizer or {})[name], array) for name, array in (expected.optimizer or {}).items()]
        assert found.config.optimizer == expected.config.optimizer
        assert found.config.train == expected.config.train
        assert found.config.data == expected.config.data
    for name, ours, theirs in pairs:
        assert ours.dtype == theirs.dtype, name
        assert np.array_equal(ours, theirs), name


__all__ = ["CONFIGS", "GPT", "assert_same", "make_snapshot", "read", "written"]
