"""The loss in chunks against the loss at once: sums, every gradient, and that no array holds all logits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_impl import head_loss
from jax_impl.losses import softmax_cross_entropy
from jax_impl.models import load_tree, make_model
from jax_impl.models.gpt import softcapped
from jax_impl.step import micro_step
from jax_impl.tree import flatten
from tests.helpers.jaxprs import inner_equations
from twinstep.config import Config, CorpusConfig, GPTConfig, LinearConfig, TabularConfig, TrainConfig
from twinstep.init import initial_weights

B, T, V = 3, 13, 40
CONFIG = Config(
    model=GPTConfig(depth=1, d_model=16, head_dim=8, kv_heads=1, vocab_size=V), train=TrainConfig(dtype="float64")
)
RANDOM = np.random.default_rng(0)
TARGETS = np.where(RANDOM.random((B, T)) < 0.2, -1, RANDOM.integers(0, V, (B, T))).astype(np.int32)
BATCH = {"tokens": RANDOM.integers(0, V, (B, T)).astype(np.int32), "targets": TARGETS}


def gradients(config: Config = CONFIG):
    """Sums and gradients by name of one jitted micro-step."""
    model = make_model(config)
    shapes = {name: s.shape for name, s in flatten(model.params).items()}
    params = load_tree(model.params, initial_weights(shapes, 0, "nonzero"))
    sums, _, grads = jax.jit(lambda params: micro_step(model, params, {}, BATCH, jax.random.key(0)))(params)
    return sums, flatten(grads)


def test_the_one_pass_gradient_is_that_of_the_plain_cross_entropy(x64):
    logits, weight = RANDOM.standard_normal((B, T, V)) * 4, RANDOM.standard_normal((B, T))
    value, grad = jax.value_and_grad(lambda z: (weight * head_loss.one_pass_cross_entropy(z, TARGETS)).sum())(logits)
    plain, plain_grad = jax.value_and_grad(lambda z: (weight * softmax_cross_entropy(z, TARGETS)).sum())(logits)
    assert float(value) == pytest.approx(float(plain), rel=1e-14)
    np.testing.assert_allclose(grad, plain_grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1, 300])  # at 300 the cap is reached, and a softmax without it would overflow
def test_the_loss_from_before_the_cap_is_the_plain_one_after_it(x64, scale):
    raw, weight, cap = RANDOM.standard_normal((B, T, V)) * 4 * scale, RANDOM.standard_normal((B, T)), 15.0
    plain = lambda z: (weight * softmax_cross_entropy(softcapped(z, cap), TARGETS)).sum()
    value, grad = jax.value_and_grad(lambda z: (weight * head_loss.capped_cross_entropy(z, TARGETS, cap)).sum())(raw)
    expected, expected_grad = jax.value_and_grad(plain)(raw)
    assert float(value) == pytest.approx(float(expected), rel=1e-14)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("chunks", [2, 4, 8])  # of 13 tokens: 7 + 6, 4 + 4 + 4 + 1, and six of 2 with one of 1
def test_chunks_give_the_sums_and_gradients_of_the_whole(x64, monkeypatch, chunks):
    sums, grads = gradients()
    monkeypatch.setattr(head_loss, "SMALLEST_CHUNK", -(-B * T * V // chunks))
    assert head_loss.count_chunks(B * T, T, V) == chunks
    sums_of_chunks, grads_of_chunks = gradients()
    for name in sums._fields:
        np.testing.assert_allclose(getattr(sums_of_chunks, name), getattr(sums, name), rtol=1e-13, err_msg=name)
    assert grads.keys() == grads_of_chunks.keys()
    for name, expected in grads.items():
        assert np.abs(expected).max() > 0, name
        np.testing.assert_allclose(grads_of_chunks[name], expected, rtol=1e-10, atol=1e-14, err_msg=name)


def test_the_gradient_follows_the_weight_of_the_sum(x64):
    """Twice the loss has twice the gradient, which was computed before the factor was known."""
    weights, x = RANDOM.standard_normal((V, 8)), RANDOM.standard_normal((B, T, 8))
    head = lambda weights, x: x @ weights.T
    loss = lambda factor, chunks: (
        lambda weights, x: factor * head_loss.chunked_loss(head, 2.0, chunks, weights, x, TARGETS).nats
    )
    whole = lambda weights, x: 2.5 * head_loss.loss_sums(softcapped(head(weights, x), 2.0), TARGETS).nats
    found = jax.grad(loss(2.5, 3), argnums=(0, 1))(weights, x)
    for ours, theirs in zip(found, jax.grad(whole, argnums=(0, 1))(weights, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_keep_the_types_of_the_whole(monkeypatch, dtype):
    config = replace(CONFIG, train=TrainConfig(dtype=dtype))
    sums, grads = gradients(config)
    monkeypatch.setattr(head_loss, "SMALLEST_CHUNK", 1)
    sums_of_chunks, grads_of_chunks = gradients(config)
    assert [x.dtype for x in sums_of_chunks] == [x.dtype for x in sums]
    assert {k: g.dtype for k, g in grads_of_chunks.items()} == {k: g.dtype for k, g in grads.items()}
    limit = {"float32": 1e-6, "bfloat16": 2e-2}[dtype]
    for name, expected in grads.items():
        difference = np.linalg.norm(grads_of_chunks[name] - expected)
        assert difference <= limit * np.linalg.norm(expected), name


def test_no_array_of_a_training_step_holds_all_logits(monkeypatch):
    model = make_model(replace(CONFIG, train=TrainConfig(dtype="float32")))

    def most_tokens() -> int:
        """Of all arrays (..., V) that are not the head's weight: for how many tokens one holds logits."""
        jaxpr = jax.make_jaxpr(lambda params: micro_step(model, params, {}, BATCH, jax.random.key(0)))(model.params)
        shapes = [v.aval.shape for eqn in inner_equations(jaxpr.jaxpr) for v in eqn.outvars]
        return max(np.prod(shape[:-1]) for shape in shapes if shape[-1:] == (V,) and len(shape) > 2)

    assert most_tokens() == B * T
    monkeypatch.setattr(head_loss, "SMALLEST_CHUNK", -(-B * T * V // 4))
    assert most_tokens() == B * 4


def test_the_logits_keep_their_tag_where_the_derivative_is_in_chunks(monkeypatch):
    """The parity engine reads the tags of the function whose derivative goes in chunks."""
    monkeypatch.setattr(head_loss, "SMALLEST_CHUNK", 1)
    weights, x = jnp.ones((V, 8)), jnp.ones((B, T, 8))
    head = lambda weights, x: x @ weights.T
    jaxpr = jax.make_jaxpr(lambda weights, x: head_loss.chunked_loss(head, 2.0, 4, weights, x, TARGETS))(weights, x)
    (tagged,) = [eqn for eqn in inner_equations(jaxpr.jaxpr) if eqn.primitive.name == "name"]
    assert tagged.params["name"] == "logits"
    assert tagged.outvars[0].aval.shape == (B, T, V)


def test_chunks_are_few_and_never_more_than_tokens():
    assert head_loss.count_chunks(8 * 256, 256, 256) == 1
    assert head_loss.count_chunks(4 * 512, 512, 4096) == 1
    assert head_loss.count_chunks(4 * 1024, 1024, 32768) == head_loss.MOST_CHUNKS
    assert head_loss.count_chunks(2**20, 3, 2**16) == 3


@pytest.mark.parametrize(
    ("vocab_size", "batch_size", "accumulation", "large"),
    [(256, 8, 1, False), (32768, 4, 1, True), (8192, 16, 8, False)],
)
def test_a_run_knows_whether_its_micro_steps_have_large_logits(vocab_size, batch_size, accumulation, large):
    config = Config(
        model=GPTConfig(vocab_size=vocab_size),
        data=CorpusConfig(sequence_len=1024),
        train=TrainConfig(batch_size=batch_size, accumulation=accumulation),
    )
    assert head_loss.large_logits(config) == large
    assert not head_loss.large_logits(Config(model=LinearConfig(), data=TabularConfig()))
