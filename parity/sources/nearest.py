"""For a leaf that no torch array feeds: the nearest thing, in words."""

from itertools import permutations

import numpy as np

from parity.sources.arrays import Arrays, is_numeric
from parity.sources.fingerprint import fingerprint


def nearest(leaf: np.ndarray, arrays: Arrays) -> str:
    """What the leaf looks like, but is not."""
    if not is_numeric(leaf):
        return f"no real numbers, but {leaf.dtype}"
    if not leaf.size:
        return "empty"
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
    return max(said, default=(0, "nothing like it"))[1]


def likenesses(leaf: np.ndarray, name: str, arrays: Arrays) -> list[tuple[float, str]]:
    """In what an array of as many numbers is like the leaf, and which share of the numbers says so."""
    array = arrays.arrays[name].astype(np.float64)
    said = []
    for axes in permutations(range(array.ndim)):
        laid = array.transpose(axes)
        if laid.shape != leaf.shape and axes != tuple(range(array.ndim)):
            continue
        laid = laid.reshape(leaf.shape)
        equal = int(np.count_nonzero(laid == leaf))
        if 2 * equal >= leaf.size:
            said.append(
                (equal / leaf.size, f"nearest {name}: equal but for {leaf.size - equal} of {leaf.size} numbers")
            )
        elif np.allclose(laid, leaf, rtol=1e-2, atol=0):
            far = float(np.max(np.abs(laid - leaf) / np.maximum(np.abs(laid), 1e-300)))
            said.append((0.5, f"nearly {name}: relative differences up to {far:.1e}"))
        elif (shift := constant(leaf - laid)) is not None:
            said.append((0.4, f"equal to {name} plus {shift:g}"))
        elif laid.all() and (factor := constant(leaf / laid)) is not None:
            said.append((0.4, f"equal to {name} times {factor:g}"))
    return said


def constant(numbers: np.ndarray) -> float | None:
    """The number that all are, nearly."""
    first = float(numbers.flat[0])
    return first if np.allclose(numbers, first, rtol=1e-4, atol=0) else None
