"""Metrics are ratios of sums over all batches."""

import numpy as np
import pytest

from jax_impl.evaluate import evaluate, metrics
from jax_impl.losses import Sums


def test_a_mean_over_unequal_batches_is_a_ratio_of_sums():
    batches = [Sums(6.0, 3, 1, 4.0, 2), Sums(10.0, 1, 1, 9.0, 4)]
    found = metrics(evaluate(lambda batch: batch, batches))
    assert found["val_loss"] == pytest.approx(16 / 4)
    assert found["val_bpb"] == pytest.approx(13 / 6 / np.log(2))


def test_without_bytes_the_metric_is_accuracy():
    assert metrics(Sums(6.0, 4, 3, 0.0, 0)) == {"val_loss": 1.5, "val_accuracy": 0.75}
