"""How a tensor of the port is wrong: its worst element, and a few words where they are certain.

Every guess is a statement about the numbers that holds within the rounding of the comparison, so it is either right
or not made. `rounding` is the relative L2 error that rounding alone may cause.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from parity.budget import Error, Tolerance, squared
from parity.result import Diagnosis, Status

FEW = 8  # numbers that may be alike by chance
FINE = 1e-4  # a rounding beyond which what many numbers have in common may be chance
PLAIN = 1e-9  # a factor this near a simple one is it
NARROW = {"bfloat16": jnp.bfloat16, "float16": np.float16, "float32": np.float32}
FACTORS = {
    "half as large": 0.5,
    "negated": -1.0,
    "twice as large": 2.0,
    "in bits, where PyTorch's is in nats (1 / ln 2 times as large)": 1 / math.log(2),
    "larger by the root of 2": math.sqrt(2),
    "smaller by the root of 2": math.sqrt(0.5),
    **{f"{n} times as large": float(n) for n in range(3, 33)},
    **{f"{n} times smaller": 1 / n for n in range(3, 33)},
}


def largest_rounding(found: Error, tolerance: Tolerance, eps: float) -> float:
    """The relative error that rounding alone may cause, as far as one comparison shows it."""
    allowed = 0.0 if tolerance.kind == "exact" else tolerance.value
    if tolerance.kind == "ratio":
        allowed *= found.own / math.sqrt(found.truth) if found.truth else 0.0
    return max(allowed, 4 * eps)


def worth_a_diagnosis(found: Error, tolerance: Tolerance, eps: float) -> bool:
    """Whether the error is likely beyond its budget, which is known only when all seeds are entered."""
    if tolerance.kind == "exact":
        return found.port > 0
    return found.port > (largest_rounding(found, tolerance, eps) / 2) ** 2 * found.truth


def diagnose(reference: np.ndarray, port: np.ndarray, step: int, rounding: float) -> Diagnosis | None:
    """Of two finite arrays of one shape; None where they are equal or empty."""
    a, b = np.asarray(reference, np.float64), np.asarray(port, np.float64)
    apart = np.abs(b - a)
    if not apart.any():
        return None
    index = np.unravel_index(np.argmax(apart), a.shape)
    norms = math.sqrt(squared(a)), math.sqrt(squared(b))
    cosine = float(np.sum(a * b)) / (norms[0] * norms[1]) if all(norms) else None
    return Diagnosis(
        step,
        [int(i) for i in index],
        float(a[index]),
        float(b[index]),
        norms[1] / norms[0] if norms[0] else None,
        cosine,
        guess(a, b, rounding),
    )


def guess(a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """The first statement that holds of b, the port's, beside a; "" where none does."""
    for said in (by_a_factor, rounded, transposed, shifted, in_one_place, reordered):
        if words := said(a, b, rounding):
            return words
    return ""


def close(a: np.ndarray, b: np.ndarray, rounding: float) -> bool:
    """Whether b is a, which is not all zero, within rounding."""
    return squared(a) > 0 and squared(b - a) <= rounding**2 * squared(a)


def by_a_factor(a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """A constant factor. A single number is that of any other: there only a simple factor says something."""
    norm, numbers = squared(a), np.count_nonzero(a)
    if not norm:
        return ""
    if not b.any():
        return "zero everywhere"
    factor = float(np.sum(a * b)) / norm
    if abs(factor - 1) <= 4 * rounding or not close(factor * a, b, rounding):
        return ""
    if rounding > FINE and numbers < FEW:
        return ""
    unsure = rounding if numbers < FEW else 4 * math.sqrt(squared(b - factor * a) / squared(b) / numbers)
    simple = next((words for words, x in FACTORS.items() if abs(factor / x - 1) <= max(PLAIN, unsure)), "")
    if simple or numbers == 1:
        return simple
    if abs(factor - 1) < 1e-3:
        return f"larger by {factor - 1:.2g} of itself" if factor > 1 else f"smaller by {1 - factor:.2g} of itself"
    return f"{factor:.{6 if rounding <= FINE else 2}g} times as large"


def rounded(a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """Numbers of a narrower type, which the reference's are not."""
    if np.count_nonzero(a) < FEW:
        return ""
    for name, dtype in NARROW.items():
        narrow_a, narrow_b = narrow(a, dtype), narrow(b, dtype)
        nearby = close(a, b, 8 * float(jnp.finfo(dtype).eps))  # else they may be narrow as ones and zeros are
        if nearby and np.array_equal(narrow_b, b) and np.mean(narrow_a[a != 0] != a[a != 0]) > 0.9:
            return f"equal to PyTorch's in {name}" if np.array_equal(narrow_a, b) else f"rounded to {name}"
    return ""


def narrow(x: np.ndarray, dtype: Any) -> np.ndarray:
    """Rounded to a type and back; what is too large for it is infinite."""
    with np.errstate(over="ignore"):
        return x.astype(dtype).astype(np.float64)


def as_long(a: np.ndarray, b: np.ndarray, rounding: float) -> bool:
    """Whether the norms are equal, as those of the same numbers in another order are."""
    return squared(a) > 0 and abs(squared(b) - squared(a)) <= 4 * max(rounding, 1e-15) * squared(a)


def transposed(a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """Axes in another order, or one of them from its end."""
    if not as_long(a, b, rounding):
        return ""
    for axes in itertools.permutations(range(a.ndim)):
        other = a.transpose(axes)
        if axes != tuple(range(a.ndim)) and other.shape == b.shape and close(other, b, rounding):
            return "transposed" if a.ndim == 2 else f"with its axes in the order {axes}"
    for axis in range(a.ndim):
        if a.shape[axis] > 1 and close(np.flip(a, axis), b, rounding):
            return f"reversed along axis {axis}"
    return ""


def shifted(a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """By one position along an axis, whatever stands in the place that is left free."""
    for axis in range(a.ndim):
        if a.shape[axis] < 4:
            continue
        a_first, b_first = np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0)
        if close(a_first[:-1], a_first[1:], 4 * rounding):  # alike at all positions
            continue
        if close(a_first[:-1], b_first[1:], rounding):
            return f"shifted by one position along axis {axis}, to the later"
        if close(a_first[1:], b_first[:-1], rounding):
            return f"shifted by one position along axis {axis}, to the earlier"
    return ""


def in_one_place(a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """Within rounding but for at most a quarter of the positions along one axis, side by side and far off."""
    for axis in range(a.ndim):
        others = tuple(i for i in range(a.ndim) if i != axis)
        norms, errors = (np.sum(np.square(x), axis=others) for x in (a, b - a))
        beyond = errors > rounding**2 * np.maximum(norms, np.mean(norms))
        wrong = np.flatnonzero(beyond)
        if not 0 < len(wrong) <= a.shape[axis] // 4 or np.min(errors[beyond]) < 100 * np.max(errors[~beyond]):
            continue
        if wrong[-1] - wrong[0] == len(wrong) - 1:
            where = f"{wrong[0]}" if len(wrong) == 1 else f"{wrong[0]} ... {wrong[-1]}"
            return f"wrong at position {where} of axis {axis} only, which has {a.shape[axis]}"
    return ""


def reordered(a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """The same numbers, whatever their order is."""
    if rounding > FINE or np.count_nonzero(a) < FEW or not as_long(a, b, rounding):
        return ""
    return "the same numbers in another order" if close(np.sort(a, None), np.sort(b, None), rounding) else ""


class Neighbour(NamedTuple):
    """A tensor that is computed beside another: of the same stage, unit, initialization and step."""

    group: str
    status: Status
    guess: str


def in_common(first: Neighbour, beside: Sequence[Neighbour]) -> str:
    """The guess for the first of some tensors, and what it shares with them all. beside: all, the first included."""
    wrong = [x for x in beside if x.status == "diverges"]
    mine = [x for x in wrong if x.group == first.group]
    said = first.guess
    if said and len(beside) == len(wrong) > 1 and all(x.guess == said for x in wrong):
        said += f", as all {len(wrong)} of its kind are"
    rest = [x for x in beside if x.group != first.group]
    alone = first.group and len(mine) == len(beside) - len(rest) and any(x.status == "agrees" for x in rest)
    if alone and not any(x.status == "diverges" for x in rest):
        whole = f"all {len(mine)} of group {first.group}" if len(mine) > 1 else f"the one of group {first.group}"
        said += f"{'; ' if said else ''}{whole}, none of the others"
    return said
