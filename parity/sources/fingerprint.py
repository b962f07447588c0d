"""Fingerprints that no order of the numbers changes: equal multisets of numbers have equal fingerprints.

Each number's bits are mixed into 64 bits, and these are added modulo 2**64, which is exact in any order. So the
fingerprint of a window is a sum over its numbers, too, and those of all windows along an axis come from one pass.
"""

import math

import numpy as np

CHUNK = 1 << 17  # numbers at a time: they stay in the processor's cache, and take no memory beside the arrays


def mixed(numbers: np.ndarray) -> np.ndarray:
    """64 bits for each number, the same for 0.0 and -0.0."""
    bits = (numbers.astype(np.float64) + 0.0).view(np.uint64)
    bits ^= bits >> np.uint64(32)
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(32)
    return bits


def fingerprint(array: np.ndarray) -> int:
    """Of all numbers of the array."""
    flat = array.reshape(-1)
    total = sum(int(mixed(flat[start : start + CHUNK]).sum()) for start in range(0, flat.size, CHUNK))
    return total % 2**64


def along_axes(array: np.ndarray) -> list[np.ndarray]:
    """For each axis, the fingerprints of the slices along it."""
    sums = [np.zeros(length, np.uint64) for length in array.shape]
    rows = max(1, CHUNK // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0] if array.ndim else 0, rows):
        chunk = mixed(array[start : start + rows])
        others = range(array.ndim)
        sums[0][start : start + rows] = chunk.sum(axis=tuple(others[1:]))
        for axis in others[1:]:
            sums[axis] += chunk.sum(axis=tuple(other for other in others if other != axis))
    return sums


def windows(slices: np.ndarray, length: int) -> np.ndarray:
    """From the fingerprints of slices, those of all windows of so many slices, by where they start."""
    ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(slices, dtype=np.uint64)])
    return ends[length:] - ends[:-length]


def is_constant(array: np.ndarray) -> bool:
    """Whether all numbers are equal."""
    flat = array.reshape(-1)
    return flat[0] == flat[-1] and bool((flat[:64] == flat[0]).all() and (flat == flat[0]).all())


def divisors(n: int) -> list[int]:
    """All of them, ascending."""
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*low, *(n // d for d in low)})
