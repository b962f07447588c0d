"""The GPT's parts against closed forms, and its causality through gradients."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_impl.models import load_tree, make_model
from jax_impl.models.gpt import apply_rotary, rms_norm, rotary_table
from jax_impl.tree import flatten
from twinstep.config import Config, GPTConfig, TrainConfig
from twinstep.init import initial_weights

CONFIG = Config(
    model=GPTConfig(depth=2, d_model=32, head_dim=8, kv_heads=2, vocab_size=40), train=TrainConfig(dtype="float64")
)


def bound_model(config: Config, init="nonzero"):
    model = make_model(config)
    shapes = {name: s.shape for name, s in flatten(model.params).items()}
    params = load_tree(model.params, initial_weights(shapes, 0, init))
    return model, params


def logits_of(model, params):
    """Of one sequence of 16 tokens, each another."""
    return jax.jit(lambda params: model.bind(params, {}, train=False)(jnp.arange(16)[None, :]))(params)


def test_rms_norm_has_unit_mean_square_up_to_eps():
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1.1920929e-07)
    np.testing.assert_allclose(rms_norm(x), expected, rtol=3e-7)


def test_rms_norm_of_tiny_values_shows_its_eps():
    """At a mean square of 1e-8 the eps of 1.19e-07 decides: 1e-4 becomes 0.278, not 1."""
    assert float(rms_norm(jnp.full((8,), 1e-4, jnp.float32))[0]) == pytest.approx(
        1e-4 / np.sqrt(1e-8 + 2**-23), rel=1e-6
    )


def test_rotary_rotates_each_pair_by_minus_its_angle(x64):
    cos, sin = (jnp.asarray(t) for t in rotary_table(replace(CONFIG.model, rotary_dtype="float64"), 16))
    x = np.random.default_rng(0).standard_normal((1, 16, 3, 8))
    pairs = x[..., :4] + 1j * x[..., 4:]
    angle = np.arange(16)[:, None] * 10000.0 ** (-np.arange(0, 8, 2) / 8)
    rotated = pairs * np.exp(-1j * angle)[None, :, None, :]
    np.testing.assert_allclose(apply_rotary(x, cos, sin), np.concatenate([rotated.real, rotated.imag], -1), atol=1e-14)


def test_rotated_products_depend_on_the_distance_alone(x64):
    cos, sin = (jnp.asarray(t) for t in rotary_table(replace(CONFIG.model, rotary_dtype="float64"), 32))
    q, k = np.random.default_rng(0).standard_normal((2, 8))
    q_TC = apply_rotary(jnp.broadcast_to(q, (1, 32, 1, 8)), cos, sin)[0, :, 0]
    k_TC = apply_rotary(jnp.broadcast_to(k, (1, 32, 1, 8)), cos, sin)[0, :, 0]
    products = np.asarray(q_TC @ k_TC.T)
    for distance in (0, 3, 11):
        assert np.ptp(np.diagonal(products, distance)) < 1e-12
    assert abs(products[0, 3] - products[3, 0]) > 1e-3  # the sign of the distance counts


def test_no_logit_depends_on_a_later_token(x64):
    """Each position holds a token of its own, so a row of the embedding's gradient is a position's influence."""
    model, params = bound_model(CONFIG)
    gradient = jax.jit(jax.grad(lambda params, t: logits_of(model, params)[0, t].sum()))

    for t in (0, 7, 15):
        rows = np.abs(np.asarray(gradient(params, t)["wte"]["weight"])[:16]).max(-1)
        assert (rows[: t + 1] > 0).all()
        assert (rows[t + 1 :] == 0).all()


def test_logits_stay_within_the_softcap():
    config = replace(CONFIG, train=TrainConfig(dtype="float32"))
    model, params = bound_model(config)
    params["lm_head"]["weight"] = params["lm_head"]["weight"] * 1e4
    logits = logits_of(model, params)
    assert float(jnp.abs(logits).max()) <= 15.0
    assert float(jnp.abs(logits).max()) > 14.9


def test_upstream_start_gives_uniform_logits():
    """Zero head, zero projections: the loss begins at log V."""
    model, params = bound_model(replace(CONFIG, train=TrainConfig(dtype="float32")), "native")
    logits = logits_of(model, params)
    assert not np.asarray(logits).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_are_float32_whatever_the_computation(dtype):
    model, params = bound_model(replace(CONFIG, train=TrainConfig(dtype=dtype)))
    assert logits_of(model, params).dtype == jnp.float32


def test_rematerialization_changes_no_gradient(x64):
    tokens = jnp.arange(16)[None, :]
    gradients = []
    for remat in (False, True):
        model, params = bound_model(replace(CONFIG, train=TrainConfig(dtype="float64", remat=remat)))
        loss = lambda p, model=model: (model.bind(p, {}, train=True)(tokens) ** 2).sum()
        gradients.append(flatten(jax.jit(jax.grad(loss))(params)))
    for name, expected in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], expected, rtol=1e-12, atol=1e-14, err_msg=name)
