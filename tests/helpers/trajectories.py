"""Ten float64 steps of small models on all devices, written to a file: `python -m tests.helpers.trajectories`.

The tests run it in processes of their own, since the number of devices is fixed before JAX starts, and compare files.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twinstep.config import (
    Config,
    CorpusConfig,
    Dtype,
    GPTConfig,
    LinearConfig,
    MLPConfig,
    OptimizerConfig,
    TabularConfig,
)
from twinstep.config import TrainConfig as Train
from twinstep.init import initial_weights

STEPS = 10
BATCH_SIZE = 16
OPTIMIZER = OptimizerConfig(weight_decay=0.1, matrix_weight_decay=0.1, warmup_fraction=0.2, clip_norm=0.5)

# 61 tokens and 9 classes: sizes that no even number of devices divides, beside others that eight devices share.
CASES = {
    "gpt": Config(
        model=GPTConfig(depth=2, d_model=32, head_dim=8, kv_heads=2, vocab_size=61),
        data=CorpusConfig(sequence_len=16),
    ),
    "mlp": Config(model=MLPConfig(hidden=16, features=24, classes=9, shared_dropout=True), data=TabularConfig()),
    "linear": Config(model=LinearConfig(features=24, classes=9), data=TabularConfig()),
}


def make_config(case: str, accumulation: int, dtype: Dtype = "float64") -> Config:
    train = Train(steps=STEPS, batch_size=BATCH_SIZE, accumulation=accumulation, dtype=dtype, init="nonzero")
    return replace(CASES[case], optimizer=OPTIMIZER, train=train)


def make_batches(config: Config) -> Iterator[dict[str, np.ndarray]]:
    """Ten global batches (A, B/A, ...), in which example r loses a share r/B of its targets, the last ones all."""
    for number in range(STEPS):
        random = np.random.default_rng([7, number])
        share = np.arange(BATCH_SIZE) / (BATCH_SIZE - 1)
        if isinstance(config.model, GPTConfig):
            size = (BATCH_SIZE, 16)
            batch: dict[str, np.ndarray] = {
                name: random.integers(0, 61, size).astype(np.int32) for name in ("tokens", "targets")
            }
            batch["targets"][random.random(size) < share[:, None]] = -1
        else:
            batch = {
                "inputs": random.standard_normal((BATCH_SIZE, 24)).astype(np.float32),
                "targets": random.integers(0, 9, BATCH_SIZE).astype(np.int32),
            }
            batch["targets"][random.random(BATCH_SIZE) < share / 2] = -1
            if isinstance(config.model, MLPConfig):
                batch["dropout_mask"] = random.random((BATCH_SIZE, config.model.hidden)) >= config.model.dropout
        a = config.train.accumulation
        yield {name: x.reshape(a, BATCH_SIZE // a, *x.shape[1:]) for name, x in batch.items()}


def run(config: Config, mode: str) -> dict[str, np.ndarray]:
    """Loss of every step; gradients of the last; parameters, buffers and optimizer state after it."""
    import jax

    from jax_impl import parallel
    from jax_impl.models import make_model
    from jax_impl.optimizer import make_optimizer
    from jax_impl.tree import flatten
    from parity.probes import keep_gradients, probing_clip

    model = make_model(config, parallel.axis_name(mode), parallel.attention(), parallel.scans_blocks(mode))
    shapes = {name: s.shape for name, s in (flatten(model.params) | flatten(model.buffers)).items()}
    optimizer = keep_gradients(make_optimizer(config, model.params, *parallel.muon_stacks(mode)))
    steps = parallel.make_steps(config, mode, model, optimizer)
    state = steps.init_state(initial_weights(shapes, 0, "nonzero"))
    losses = []
    for batch in make_batches(config):
        with probing_clip():
            state, metrics = steps.train(state, steps.place_train_batch(batch))
        losses.append(np.asarray(metrics["loss"]))
    found = {f"state.{n}": np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(state.opt_state[1]))}
    found |= {f"gradient.{name}": np.asarray(g) for name, g in flatten(state.opt_state[0].observed).items()}
    found |= {f"parameter.{name}": np.asarray(p) for name, p in flatten(state.params).items()}
    found |= {f"buffer.{name}": np.asarray(p) for name, p in flatten(state.buffers).items()}
    found |= {name: np.asarray(x) for name, x in metrics.items() if name == "leaf_norms" or "_norm/" in name}
    evaluated = steps.evaluate(state, steps.place_eval_batch({name: x[0] for name, x in batch.items()}))
    return {"loss": np.array(losses), "evaluation": np.array([float(x) for x in evaluated]), **found}


def trajectories(devices: int, runs: list[tuple[str, int, str]], out: Path) -> dict[str, dict[str, np.ndarray]]:
    """All the runs (case, accumulation, mode) in one process of so many CPU devices; keyed "case/accumulation/mode"."""
    command = [sys.executable, "-m", "tests.helpers.trajectories", str(out), *names_of(runs)]
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(command, env=environment(XLA_FLAGS=flags), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_trajectories(out)


def names_of(runs: Sequence[tuple]) -> list[str]:
    return ["/".join(map(str, run)) for run in runs]


def environment(**extra: str) -> dict[str, str]:
    """This process's, from the repository's root, on the CPU."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd(), **extra}


def save_trajectories(out: Path, found: dict[str, dict[str, np.ndarray]]) -> None:
    flat: dict[str, Any] = {f"{name}:{what}": x for name, arrays in found.items() for what, x in arrays.items()}
    np.savez(out, **flat)


def load_trajectories(out: Path) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(out) as arrays:
        for key in arrays:
            name, _, what = key.partition(":")
            found.setdefault(name, {})[what] = arrays[key]
    return found


def largest_difference(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], skip: str = ""
) -> tuple[float, str]:
    """The largest relative L2 error of any array, and its name; both must hold the same ones.

    skip: a prefix of names that only one of them has.
    """
    names = {name for name in found.keys() | expected.keys() if not skip or not name.startswith(skip)}
    errors = []
    for name in sorted(names):
        difference, norm = np.linalg.norm(found[name] - expected[name]), np.linalg.norm(expected[name])
        assert found[name].shape == expected[name].shape, name
        errors.append((float(difference / norm if norm else difference), name))
    return max(errors)


def main(out: str, names: list[str]) -> None:
    import jax

    jax.config.update("jax_enable_x64", True)
    found = {}
    for name in names:
        case, accumulation, mode = name.split("/")
        found[name] = run(make_config(case, int(accumulation)), mode)
    save_trajectories(Path(out), found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
