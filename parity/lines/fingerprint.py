"""What is remembered of an array: numbers that a transpose or a reshape leaves as they are, and some that it changes.

Both sides' arrays are fingerprinted by this one function in float64, so that equal arrays have equal fingerprints but
for the rounding of the arrays themselves.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

HUGE = 1e30  # a mask's number, which says nothing about the rest
FEW = 4  # numbers, of which fewer agree by chance
BLOCK = 1 << 13  # numbers that stay in a core's cache through all sums, and are too few for BLAS to start threads


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
    x = np.ascontiguousarray(array, np.float64).ravel()
    if x.size == 0:
        return Fingerprint(kind, 0, False, np.zeros(9), 0.0, ())
    with np.errstate(all="ignore"):
        total = sum_of_squares(x)
        if not total < HUGE * HUGE:
            x = np.where(np.abs(x) < HUGE, x, 0.0)
            total = sum_of_squares(x)
        rms = math.sqrt(total / x.size)
        if rms == 0 or not math.isfinite(rms):
            return Fingerprint(kind, x.size, False, np.zeros(9), 0.0, (0.0,) * array.ndim)
        low, high = float(x.min()), float(x.max())
        sums, mixed, order, two_valued = np.zeros(6), np.empty_like(x), 0.0, True
        for start in range(0, x.size, BLOCK):
            block = x[start : start + BLOCK]
            two_valued = two_valued and not np.any((block != low) & (block != high))
            y = block / rms
            size, square = np.abs(y), y * y
            cube, bounded, bounded_square = np.dot(square, y), (y / (1 + size)).sum(), (square / (1 + square)).sum()
            sums += [y.sum(), size.sum(), cube, bounded, bounded_square, np.sqrt(size).sum()]
            mixed[start : start + BLOCK] = y + 0.5 * square
            order += float(np.dot(weights(len(block), start), mixed[start : start + BLOCK]))
    telling = kind == "float" and x.size >= FEW and not two_valued
    all_sums = np.array([rms, *sums / x.size, low / rms, high / rms])
    return Fingerprint(kind, x.size, telling, all_sums, order / x.size, axes_of(mixed, array.shape))


def sum_of_squares(x: np.ndarray) -> float:
    """Block by block."""
    blocks = (x[start : start + BLOCK] for start in range(0, x.size, BLOCK))
    return math.fsum(float(np.dot(block, block)) for block in blocks)


def axes_of(x: np.ndarray, shape: tuple[int, ...]) -> tuple[float, ...]:
    """Of each axis the weighted mean of the numbers at its places; two passes over them, however many axes."""
    half = min(range(len(shape) + 1), key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))
    matrix = x.reshape(math.prod(shape[:half]), math.prod(shape[half:]))
    first, last = matrix.mean(1).reshape(shape[:half]), matrix.mean(0).reshape(shape[half:])
    means = []
    for part in (first, last):
        for axis, length in enumerate(part.shape):
            others = tuple(other for other in range(part.ndim) if other != axis)
            means.append(float(np.dot(weights(length), part.mean(axis=others))) / length)
    return tuple(means)


@lru_cache(maxsize=256)
def weights(length: int, start: int = 0) -> np.ndarray:
    """Fixed numbers between -1/2 and 1/2 that differ from place to place: the fractions of multiples of sqrt(2)."""
    multiples = np.arange(start + 1, start + length + 1) * math.sqrt(2)
    return multiples - np.floor(multiples) - 0.5


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
