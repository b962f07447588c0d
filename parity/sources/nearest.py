"""For a leaf that no torch array feeds: the nearest thing, in words."""

from itertools import permutations

import numpy as np

from parity.sources.arrays import Arrays, is_numeric
from parity.sources.fingerprint import along_axes, fingerprint

SAMPLE = 4096  # numbers that decide whether all are compared
ROUNDED = 0.01  # relative: bfloat16's rounding and a little more


def nearest(leaf: np.ndarray, arrays: Arrays) -> str:
    """What the leaf looks like, but is not."""
    if not is_numeric(leaf):
        return f"no real numbers, but {leaf.dtype}"
    if not leaf.size:
        return "it holds no numbers"
    if leaf.dtype.kind in "fV" and not np.isfinite(leaf).all():
        return "it holds numbers that are not finite"
    if names := arrays.with_mark(fingerprint(leaf), leaf.size, leaf.dtype):
        return f"the same numbers as {names[0]} in another order: gates permuted?"
    if names := arrays.with_mark(fingerprint(-leaf.astype(np.float64)), leaf.size, leaf.dtype):
        return f"equal to {names[0]} but negated"
    leaf64 = leaf.astype(np.float64)
    said = [
        (equal, text) for name in arrays.by_size.get(leaf.size, []) for equal, text in likenesses(leaf64, name, arrays)
    ]
    return max(said)[1] if said else nearest_in_a_stack(leaf, arrays)


def nearest_in_a_stack(leaf: np.ndarray, arrays: Arrays) -> str:
    """What the first slice looks like that is none of the arrays, if most of them are."""
    for axis, marks in enumerate(along_axes(leaf) if leaf.ndim > 1 else []):
        size = leaf.size // len(marks)
        strange = [i for i, mark in enumerate(marks.tolist()) if not arrays.with_mark(mark, size, leaf.dtype)]
        if 0 < len(strange) <= len(marks) // 2:
            return f"{nearest(leaf.take(strange[0], axis), arrays)}, at {strange[0]} on axis {axis} of the stack"
    return "nothing like it"


def likenesses(leaf: np.ndarray, name: str, arrays: Arrays) -> list[tuple[float, str]]:
    """In what an array of as many numbers is like the leaf, and how much that says."""
    array, said = arrays.arrays[name], []
    sample = np.unravel_index(np.linspace(0, leaf.size - 1, min(leaf.size, SAMPLE)).astype(np.int64), leaf.shape)
    for axes in permutations(range(array.ndim)):
        laid = array.transpose(axes)
        if laid.shape != leaf.shape:
            if axes != tuple(range(array.ndim)):
                continue
            laid = array.reshape(leaf.shape)
        if likeness := compared(leaf[sample], laid[sample].astype(np.float64), name):
            likeness = compared(leaf, laid.astype(np.float64), name)
        said += [likeness] if likeness else []
    return said


def compared(leaf: np.ndarray, array: np.ndarray, name: str) -> tuple[float, str] | None:
    """In what two arrays of one shape are alike, if they are: equal but for some, rounded, shifted, scaled."""
    unequal = int(np.count_nonzero(array != leaf))
    if 2 * unequal < leaf.size:
        return 1 - unequal / leaf.size, f"nearest {name}: equal but for {unequal} of {leaf.size} numbers"
    if np.allclose(array, leaf, rtol=ROUNDED, atol=0):
        far = float(np.max(np.abs(array - leaf) / np.maximum(np.abs(array), np.finfo(np.float64).tiny)))
        return 0.5, f"nearly {name}: relative differences up to {far:.1e}"
    if (shift := constant(leaf - array)) is not None:
        return 0.4, f"equal to {name} plus {shift:g}"
    if array.all() and (factor := constant(leaf / array)) is not None:
        return 0.4, f"equal to {name} times {factor:g}"
    return None


def constant(numbers: np.ndarray) -> float | None:
    """The number that all are, nearly."""
    first = float(numbers.flat[0])
    return first if np.allclose(numbers, first, rtol=1e-4, atol=0) else None
