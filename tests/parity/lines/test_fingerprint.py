"""Fingerprints against the formulas that define them, written out over whole arrays."""

import math

import numpy as np
import pytest

from parity.lines.fingerprint import BLOCK, fingerprint

RNG = np.random.default_rng(0)
LONG = RNG.normal(size=(3, 40, BLOCK // 50))


def written_out(x):
    rms = np.sqrt(np.mean(x * x))
    y = x / rms
    size, square = np.abs(y), y * y
    means = [y, size, square * y, y / (1 + size), square / (1 + square), np.sqrt(size)]
    return np.array([rms, *(part.mean() for part in means), y.min(), y.max()]), y + 0.5 * square


def weighted(x):
    places = np.arange(1, len(x) + 1) * math.sqrt(2)
    return np.mean((places % 1 - 0.5) * x)


@pytest.mark.parametrize(
    "x",
    [LONG, LONG.transpose(2, 0, 1), LONG.ravel(), LONG[0].T, LONG[0, 0, :5], LONG[0, 0, 0], LONG.astype(np.float32)],
)
def test_an_array_in_blocks(x):
    actual = fingerprint(x)
    sums, mixed = written_out(x.astype(np.float64))
    assert (actual.kind, actual.size, actual.telling) == ("float", x.size, x.size > 4)
    np.testing.assert_allclose(actual.sums, sums, rtol=1e-12, atol=1e-14)
    assert math.isclose(actual.order, weighted(mixed.ravel()), abs_tol=1e-14)
    means = [mixed.mean(axis=tuple(set(range(x.ndim)) - {axis})) for axis in range(x.ndim)]
    np.testing.assert_allclose(actual.axes, [weighted(mean) for mean in means], atol=1e-14)


def test_numbers_that_are_not_finite_count_as_zero():
    x = np.where(LONG > 1, [-np.inf], LONG)
    x[0, 0, :3] = np.nan, np.inf, -3e38
    usable = np.where(np.isfinite(x) & (np.abs(x) < 1e30), x, 0)
    np.testing.assert_array_equal(fingerprint(x).sums, fingerprint(usable).sums)


@pytest.mark.parametrize(
    ("x", "kind"),
    [(LONG > 0, "bool"), (np.arange(12), "int"), (np.ones(9), "float"), (np.where(LONG > 0, 1.0, 2.0), "float")],
)
def test_masks_integers_and_constants_tell_nothing(x, kind):
    assert (fingerprint(x).kind, fingerprint(x).telling) == (kind, False)
