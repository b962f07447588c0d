from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_impl.optimizer import CLIP_EPS, Group, clip_by_global_norm, group_norms, make_optimizer, make_transform
from jax_impl.tree import unflatten
from tests.helpers.optimizer_cases import CONSTANT, GPT, draw, numpy_adamw
from twinstep.config import Config, LinearConfig, TabularConfig
from twinstep.config import TrainConfig as Train


def run_steps(optimizer, p, grads):
    params, path = jnp.asarray(p), []
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return path


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", [CONSTANT, replace(CONSTANT, warmup_fraction=0.5, warmdown_fraction=0.5)])
def test_adamw_follows_its_formula_at_every_rate_of_the_schedule(optimizer):
    config = replace(GPT, optimizer=optimizer, train=Train(steps=8))
    p, grads = draw((6, 4), 9), [draw((6, 4), seed) for seed in range(8)]
    shape = [1.0] * 8 if optimizer is CONSTANT else [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    expected = numpy_adamw(p, grads, [0.1 * s for s in shape], 0.7, 0.9, 1e-3, 0.2)
    for found, wanted in zip(
        run_steps(make_transform(config, Group("adamw", 0.1, 0.2)), p, grads), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_adamw_is_optaxs_own_at_a_constant_rate():
    config = replace(GPT, optimizer=CONSTANT)
    p, grads = draw((6, 4), 9), [draw((6, 4), seed) for seed in range(5)]
    witness = optax.adamw(0.1, b1=0.7, b2=0.9, eps=1e-3, weight_decay=0.2)
    ours = run_steps(make_transform(config, Group("adamw", 0.1, 0.2)), p, grads)
    for found, wanted in zip(ours, run_steps(witness, p, grads), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_sgd_decays_apart_from_the_gradient():
    p, g = draw((6, 4), 9), draw((6, 4), 0)
    (found,) = run_steps(make_transform(replace(GPT, optimizer=CONSTANT), Group("sgd", 0.1, 0.2)), p, [g])
    np.testing.assert_allclose(found, p - 0.1 * (g + 0.2 * p), rtol=0, atol=1e-15)


def test_clip_uses_the_norm_over_all_groups():
    tree = {"a": jnp.full((2, 2), 3.0), "b": {"c": jnp.full((4,), 4.0)}}  # norm 10
    clipped, norm = clip_by_global_norm(tree, 2.0)
    assert float(norm) == pytest.approx(10.0)  # before clipping
    assert jax.tree.all(jax.tree.map(lambda c, t: jnp.allclose(c, t * 0.2, rtol=1e-6), clipped, tree))
    untouched, _ = clip_by_global_norm(tree, 11.0)
    assert jax.tree.all(jax.tree.map(lambda c, t: (c == t).all(), untouched, tree))


@pytest.mark.usefixtures("x64")
def test_clip_adds_torchs_eps_to_the_norm():
    tree = {"a": jnp.full((4,), 1e-6)}  # norm 2e-6
    clipped, _ = clip_by_global_norm(tree, 1e-6)
    np.testing.assert_allclose(clipped["a"], 1e-6 * 1e-6 / (2e-6 + CLIP_EPS), rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_clipping_comes_before_the_optimizer_groups(clip_norm):
    config = Config(
        model=LinearConfig(features=4, classes=3),
        data=TabularConfig(),
        optimizer=replace(CONSTANT, matrix_optimizer="sgd", clip_norm=clip_norm),
        train=Train(dtype="float64"),
    )
    params = unflatten({"linear.weight": jnp.ones((3, 4)), "linear.bias": jnp.ones(3)})
    grads = unflatten({"linear.weight": jnp.full((3, 4), 2.0), "linear.bias": jnp.full(3, 5.0)})
    optimizer = make_optimizer(config, params)
    clipped, _ = clip_by_global_norm(grads, clip_norm)
    updates, _ = optimizer.update(clipped, optimizer.init(params), params)
    norm = np.sqrt(12 * 4 + 3 * 25)
    factor = 0.5 / (norm + 1e-6) if clip_norm else 1.0
    np.testing.assert_allclose(updates["linear"]["weight"], -0.02 * 2.0 * factor, rtol=1e-12)
    np.testing.assert_allclose(updates["linear"]["bias"], -0.01 * 5 * factor / (5 * factor + 1e-3), rtol=1e-12)


def test_the_norm_of_the_parameters_does_not_wait_for_that_of_the_update():
    # It would be read after the new parameters took the old ones' place, so that XLA copied all of them.
    config = Config(model=LinearConfig(), data=TabularConfig(), train=Train(steps=8))
    params = {"linear": {"weight": jnp.full((4, 4), 2.0), "bias": jnp.zeros(4)}}
    norms = group_norms(config, params, jax.tree.map(lambda p: p * jnp.nan, params))
    assert (norms["param_norm/matrix"], norms["param_norm/vector"]) == (8, 0)
    assert jnp.isnan(norms["update_norm/matrix"])
