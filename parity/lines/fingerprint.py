"""What is remembered of an array: numbers that a transpose or a reshape leaves as they are, and some that it changes.

Both sides' arrays are fingerprinted by this one function in float64, so that equal arrays have equal fingerprints but
for the rounding of the arrays themselves.
"""

from typing import NamedTuple

import numpy as np

HUGE = 1e30  # a mask's number, which says nothing about the rest
FEW = 4  # numbers, of which fewer agree by chance


class Fingerprint(NamedTuple):
    """`sums` do not depend on the order of the numbers; `order` and `axes` say in which order they stand."""

    kind: str  # "float", "int" or "bool"
    size: int
    telling: bool  # many different floating numbers: no other array has them by chance
    sums: np.ndarray  # the root mean square, and eight numbers relative to it; (9,)
    order: float  # of the numbers in C order
    axes: tuple[float, ...]  # of the numbers by their place on each axis, relative to the root mean square


def fingerprint(array: np.ndarray) -> Fingerprint:
    """Of an array of any shape and dtype. Numbers that are not finite count as 0, and say nothing."""
    kind = {"b": "bool", "i": "int", "u": "int"}.get(array.dtype.kind, "float")
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    x = array.astype(np.float64, copy=False)
    if x.size == 0:
        return Fingerprint(kind, 0, False, np.zeros(9), 0.0, ())
    with np.errstate(all="ignore"):
        usable = np.abs(x) < HUGE
        if not usable.all():
            x = np.where(usable, x, 0.0)
        rms = float(np.sqrt(np.mean(x * x)))
        if rms == 0 or not np.isfinite(rms):
            return Fingerprint(kind, x.size, False, np.zeros(9), 0.0, (0.0,) * x.ndim)
        y = x / rms
        low, high = float(y.min()), float(y.max())
        two_valued = not np.any((y != low) & (y != high))
        size = np.abs(y)
        square = y * y
        sums = [
            rms,
            y.mean(),
            size.mean(),
            (square * y).mean(),
            (y / (1 + size)).mean(),
            (square / (1 + square)).mean(),
        ]
        sums += [np.sqrt(size).mean(), low, high]
    mixed = y + 0.5 * square
    order = float(np.dot(weights(x.size), mixed.ravel())) / x.size
    axes = []
    for axis, length in enumerate(x.shape):
        others = tuple(other for other in range(x.ndim) if other != axis)
        axes.append(float(np.dot(weights(length), mixed.mean(axis=others))) / length)
    telling = kind == "float" and x.size >= FEW and not two_valued
    return Fingerprint(kind, x.size, telling, np.array(sums), order, tuple(axes))


def weights(length: int) -> np.ndarray:
    """Fixed numbers between -1/2 and 1/2 that differ from place to place: the fractions of multiples of sqrt(2)."""
    return np.modf(np.arange(1, length + 1) * np.sqrt(2.0))[0] - 0.5


def distance(a: Fingerprint, b: Fingerprint) -> float:
    """Of two arrays' numbers in any order, relative: 0 for the same, infinite where their sizes differ."""
    if a.size != b.size or a.kind != b.kind:
        return float("inf")
    scale = max(a.sums[0], b.sums[0])
    if scale == 0:
        return 0.0
    rms = abs(a.sums[0] - b.sums[0]) / scale
    rest = np.abs(a.sums[1:] - b.sums[1:]) / (1 + np.maximum(np.abs(a.sums[1:]), np.abs(b.sums[1:])))
    return float(max(rms, rest.max()))
