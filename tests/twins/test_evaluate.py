"""Metrics are ratios of sums over all batches."""

import numpy as np
import pytest


def test_a_mean_over_unequal_batches_is_a_ratio_of_sums(twin):
    module, losses = twin.module("evaluate"), twin.module("losses")
    values = [(6.0, 3, 1, 4.0, 2), (10.0, 1, 1, 9.0, 4)]
    batches = [losses.Sums(*map(twin.array, sums)) for sums in values]
    found = module.metrics(module.evaluate(lambda batch: batch, batches))
    assert found["val_loss"] == pytest.approx(16 / 4)
    assert found["val_bpb"] == pytest.approx(13 / 6 / np.log(2))


def test_without_bytes_the_metric_is_accuracy(twin):
    sums = twin.module("losses").Sums(6.0, 4, 3, 0.0, 0)
    assert twin.module("evaluate").metrics(sums) == {"val_loss": 1.5, "val_accuracy": 0.75}
