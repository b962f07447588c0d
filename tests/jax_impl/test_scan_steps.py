"""Many steps in one dispatch are the same steps."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from jax_impl.models import make_model
from jax_impl.optimizer import make_optimizer
from jax_impl.step import init_state, scan_train_steps, train_step
from jax_impl.tree import flatten
from twinstep.config import Config, LinearConfig, MLPConfig, TrainConfig
from twinstep.init import initial_weights

MODELS = {"linear": LinearConfig(features=7, classes=3), "mlp": MLPConfig(hidden=6, features=7, classes=3)}


@pytest.mark.parametrize("name", MODELS)
def test_scanned_steps_end_where_single_steps_end(x64, name):
    """Schedule, optimizer state, dropout keys and running statistics all go on from step to step."""
    config = Config(model=MODELS[name], train=replace(TrainConfig(steps=5), dtype="float64"))
    random = np.random.default_rng(0)
    batches = {"inputs": random.standard_normal((5, 2, 8, 7)), "targets": random.integers(0, 3, (5, 2, 8))}
    model = make_model(config)
    optimizer = make_optimizer(config, model.params)
    shapes = {name: s.shape for name, s in (flatten(model.params) | flatten(model.buffers)).items()}
    start = init_state(model, optimizer, initial_weights(shapes, 0), seed=0)
    step_fn = partial(train_step, config, model, optimizer)

    scanned, metrics = jax.jit(partial(scan_train_steps, step_fn))(start, batches)
    state, losses = start, []
    for number in range(5):
        state, found = jax.jit(step_fn)(state, {name: x[number] for name, x in batches.items()})
        losses.append(found["loss"])
    assert int(scanned.step) == 5
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-13)
    for ours, theirs in zip(jax.tree.leaves(scanned), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)
