"""Losses against SciPy, and the sums that every mean is made of."""

import numpy as np
import torch
from scipy.special import expit, log_softmax

from torch_ref.losses import loss_sums, sigmoid_binary_cross_entropy, softmax_cross_entropy

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.standard_normal((5, 7, 11)) * 4
TARGETS = RANDOM.integers(-1, 11, (5, 7))
NATS = -np.take_along_axis(log_softmax(LOGITS, -1), np.maximum(TARGETS, 0)[..., None], -1)[..., 0]


def test_cross_entropy_is_minus_the_log_probability_and_zero_where_ignored():
    found = softmax_cross_entropy(torch.tensor(LOGITS), torch.tensor(TARGETS))
    np.testing.assert_allclose(found, np.where(TARGETS == -1, 0, NATS), rtol=1e-12)


def test_gradient_is_probability_minus_one_hot():
    logits = torch.tensor(LOGITS, requires_grad=True)
    softmax_cross_entropy(logits, torch.tensor(TARGETS)).sum().backward()
    expected = np.exp(log_softmax(LOGITS, -1)) - np.eye(11)[TARGETS]
    np.testing.assert_allclose(logits.grad, np.where(TARGETS[..., None] == -1, 0, expected), atol=1e-14)


def test_binary_cross_entropy_is_the_log_of_the_sigmoid():
    logits, targets = RANDOM.standard_normal((20, 1)), RANDOM.integers(0, 2, 20)
    probability = expit(np.where(targets == 1, logits[:, 0], -logits[:, 0]))
    found = sigmoid_binary_cross_entropy(torch.tensor(logits), torch.tensor(targets))
    np.testing.assert_allclose(found, -np.log(probability), rtol=1e-12)


def test_binary_cross_entropy_of_huge_logits_is_finite():
    found = sigmoid_binary_cross_entropy(torch.tensor([[1e4], [-1e4]]), torch.tensor([0, 0]))
    np.testing.assert_allclose(found, [1e4, 0])


def test_sums_count_only_what_is_not_ignored():
    target_bytes = RANDOM.integers(0, 3, TARGETS.shape)
    sums = loss_sums(torch.tensor(LOGITS), torch.tensor(TARGETS), torch.tensor(target_bytes))
    counts = TARGETS != -1
    assert int(sums.targets) == counts.sum()
    assert int(sums.correct) == (counts & (LOGITS.argmax(-1) == TARGETS)).sum()
    assert int(sums.bytes) == target_bytes[counts].sum()
    np.testing.assert_allclose(sums.nats, NATS[counts].sum(), rtol=1e-12)
    np.testing.assert_allclose(sums.byte_nats, NATS[counts & (target_bytes > 0)].sum(), rtol=1e-12)
