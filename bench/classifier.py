"""Updates per second of the linear classifier on digits' sizes, Muon and AdamW: many tiny steps."""

from typing import Any

import numpy as np

from bench.interleave import interleave, per_step
from bench.options import Bench, Row
from bench.process import workers
from bench.rows import rows_of
from twinstep.config import Config, LinearConfig, TrainConfig
from twinstep.init import initial_weights

UPDATES = {"jax": 2000, "torch": 200}  # in one sample: each long enough to time
BATCH, FEATURES, CLASSES = 128, 64, 10


def prepare(side: str, spec: dict[str, Any]) -> Any:
    """`spec["updates"]` steps on as many batches."""
    updates = spec["updates"]
    config = Config(
        model=LinearConfig(features=FEATURES, classes=CLASSES), train=TrainConfig(batch_size=BATCH, steps=10**6)
    )
    random = np.random.default_rng(0)
    inputs = random.standard_normal((updates, 1, BATCH, FEATURES), dtype=np.float32)
    targets = random.integers(0, CLASSES, (updates, 1, BATCH), dtype=np.int32)
    return (prepare_jax if side == "jax" else prepare_torch)(config, inputs, targets)


def prepare_jax(config: Config, inputs: np.ndarray, targets: np.ndarray) -> Any:
    """All steps in one dispatch."""
    from functools import partial

    import jax

    from jax_impl import cpu, parallel
    from jax_impl.models import make_model
    from jax_impl.optimizer import make_optimizer
    from jax_impl.step import init_state, scan_train_steps, train_step
    from jax_impl.tree import flatten

    cpu.keep_freed_memory(config)
    parallel.set_precision(config)
    model = make_model(config)
    optimizer = make_optimizer(config, model.params)
    weights = initial_weights({name: s.shape for name, s in flatten(model.params).items()}, 0)
    state = init_state(model, optimizer, weights, 0)
    step_fn = partial(train_step, config, model, optimizer)
    steps = jax.jit(partial(scan_train_steps, step_fn), donate_argnums=0, compiler_options=cpu.compiler_options())

    batches = jax.device_put({"inputs": inputs, "targets": targets})  # torch's are tensors beforehand, too

    def work() -> float:
        nonlocal state
        state, metrics = steps(state, batches)
        return float(metrics["loss"][-1])

    return work


def prepare_torch(config: Config, inputs: np.ndarray, targets: np.ndarray) -> Any:
    """The plain loop."""
    import torch

    from torch_ref.models import load_weights, make_model, weight_shapes
    from torch_ref.optimizer import setup_optimizers
    from torch_ref.step import train_step

    model = make_model(config)
    load_weights(model, initial_weights(weight_shapes(model), 0))
    optimizers = setup_optimizers(config, model)
    batches = [
        {"inputs": torch.from_numpy(x), "targets": torch.from_numpy(y.astype(np.int64))}
        for x, y in zip(inputs, targets, strict=True)
    ]

    def work() -> float:
        for step, batch in enumerate(batches):
            metrics = train_step(config, model, optimizers, step, batch)
        return float(metrics["loss"])

    return work


def measure(bench: Bench) -> list[Row]:
    """Updates per second; the ratio is that of the time of one update."""
    updates = dict.fromkeys(UPDATES, 3) if bench.options.tiny else UPDATES
    with workers("classifier", {side: {"updates": count} for side, count in updates.items()}) as sides:
        samples = interleave(sides, bench.options.rounds, deadline=bench.deadline)
    return rows_of("linear classifier", per_step(samples, updates), "updates/s", lambda sample: 1 / sample.seconds)
