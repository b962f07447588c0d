"""Losses against SciPy, and the sums that every mean is made of."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.standard_normal((5, 7, 11)) * 4
TARGETS = RANDOM.integers(-1, 11, (5, 7)).astype(np.int32)
NATS = -np.take_along_axis(log_softmax(LOGITS, -1), np.maximum(TARGETS, 0)[..., None], -1)[..., 0]


@pytest.fixture
def losses(twin):
    return twin.module("losses")


def test_cross_entropy_is_minus_the_log_probability_and_zero_where_ignored(twin, losses):
    found = losses.softmax_cross_entropy(twin.array(LOGITS), twin.array(TARGETS))
    np.testing.assert_allclose(found, np.where(TARGETS == -1, 0, NATS), rtol=1e-12)


def test_gradient_is_probability_minus_one_hot(twin, losses):
    found = twin.gradient(lambda z: losses.softmax_cross_entropy(z, twin.array(TARGETS)), LOGITS)
    expected = np.exp(log_softmax(LOGITS, -1)) - np.eye(11)[TARGETS]
    np.testing.assert_allclose(found, np.where(TARGETS[..., None] == -1, 0, expected), atol=1e-14)


def test_binary_cross_entropy_is_the_log_of_the_sigmoid(twin, losses):
    logits, targets = RANDOM.standard_normal((20, 1)), RANDOM.integers(0, 2, 20)
    probability = expit(np.where(targets == 1, logits[:, 0], -logits[:, 0]))
    found = losses.sigmoid_binary_cross_entropy(twin.array(logits), twin.array(targets))
    np.testing.assert_allclose(found, -np.log(probability), rtol=1e-12)


def test_binary_cross_entropy_of_huge_logits_is_finite(twin, losses):
    logits, targets = np.array([[1e4], [-1e4]], np.float32), np.array([0, 0])
    found = losses.sigmoid_binary_cross_entropy(twin.array(logits), twin.array(targets))
    np.testing.assert_allclose(found, [1e4, 0])


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-5)])
def test_sums_count_only_what_is_not_ignored(twin, losses, dtype, rtol):
    logits, target_bytes = LOGITS.astype(dtype), RANDOM.integers(0, 3, TARGETS.shape)
    sums = losses.loss_sums(twin.array(logits), twin.array(TARGETS), twin.array(target_bytes))
    counts = TARGETS != -1
    assert int(sums.targets) == counts.sum()
    assert int(sums.correct) == (counts & (logits.argmax(-1) == TARGETS)).sum()
    assert int(sums.bytes) == target_bytes[counts].sum()
    np.testing.assert_allclose(sums.nats, NATS[counts].sum(), rtol=rtol)
    np.testing.assert_allclose(sums.byte_nats, NATS[counts & (target_bytes > 0)].sum(), rtol=rtol)


def test_logits_two_and_one_are_probabilities_073_and_027(twin, losses):
    nats = losses.softmax_cross_entropy(twin.array([[2.0, 1.0]] * 2), twin.array([0, 1]))
    np.testing.assert_allclose(np.exp(-np.asarray(nats)), [0.7311, 0.2689], atol=1e-4)
