"""Losses against SciPy, and the sums that every mean is made of."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, log_softmax

from jax_impl.losses import loss_sums, sigmoid_binary_cross_entropy, softmax_cross_entropy

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.standard_normal((5, 7, 11)) * 4
TARGETS = RANDOM.integers(-1, 11, (5, 7)).astype(np.int32)


def test_cross_entropy_is_minus_the_log_probability_and_zero_where_ignored(x64):
    expected = -np.take_along_axis(log_softmax(LOGITS, -1), np.maximum(TARGETS, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(softmax_cross_entropy(LOGITS, TARGETS), np.where(TARGETS == -1, 0, expected), rtol=1e-12)


def test_gradient_is_probability_minus_one_hot(x64):
    found = jax.grad(lambda z: softmax_cross_entropy(z, TARGETS).sum())(LOGITS)
    expected = np.exp(log_softmax(LOGITS, -1)) - np.eye(11)[TARGETS]
    np.testing.assert_allclose(found, np.where(TARGETS[..., None] == -1, 0, expected), atol=1e-14)


def test_binary_cross_entropy_is_the_log_of_the_sigmoid(x64):
    logits, targets = RANDOM.standard_normal((20, 1)), RANDOM.integers(0, 2, 20)
    probability = expit(np.where(targets == 1, logits[:, 0], -logits[:, 0]))
    np.testing.assert_allclose(sigmoid_binary_cross_entropy(logits, targets), -np.log(probability), rtol=1e-12)


def test_binary_cross_entropy_of_huge_logits_is_finite():
    found = sigmoid_binary_cross_entropy(jnp.array([[1e4], [-1e4]]), jnp.array([0, 0]))
    np.testing.assert_allclose(found, [1e4, 0])


def test_sums_count_only_what_is_not_ignored():
    target_bytes = RANDOM.integers(0, 3, TARGETS.shape)
    sums = loss_sums(LOGITS, TARGETS, target_bytes)
    counts = TARGETS != -1
    nats = -np.take_along_axis(log_softmax(LOGITS, -1), np.maximum(TARGETS, 0)[..., None], -1)[..., 0]
    assert int(sums.targets) == counts.sum()
    assert int(sums.correct) == (counts & (LOGITS.argmax(-1) == TARGETS)).sum()
    assert int(sums.bytes) == target_bytes[counts].sum()
    np.testing.assert_allclose(sums.nats, nats[counts].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.byte_nats, nats[counts & (target_bytes > 0)].sum(), rtol=1e-5)


def test_logits_two_and_one_are_probabilities_073_and_027():
    probability = np.exp(-np.asarray(softmax_cross_entropy(jnp.array([[2.0, 1.0]] * 2), jnp.array([0, 1]))))
    np.testing.assert_allclose(probability, [0.7311, 0.2689], atol=1e-4)
