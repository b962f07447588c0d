"""What makes two arrays unlike without a distance: no numbers, another shape or type, numbers that are not finite."""

import itertools
from typing import NamedTuple

import numpy as np


class Unlike(NamedTuple):
    """Why two arrays have no distance. wrong: whether the port is to blame, and not both sides alike."""

    note: str
    wrong: bool = True


def unlike(
    reference: np.ndarray, port: np.ndarray, any_type: bool, sides: tuple[str, str] = ("torch", "JAX")
) -> Unlike | None:
    """None where the distance between the two says all. any_type: their types may differ. sides: their names."""
    ours, theirs = sides
    if port.dtype.kind in "OSU":
        return Unlike(f"no numbers in {theirs}, but {type(port.flat[0]).__name__ if port.size else port.dtype}")
    if reference.shape != port.shape:
        layout = of_another_shape(reference, port)
        return Unlike(f"shape {reference.shape} in {ours}, {port.shape} in {theirs}{layout and f': {layout}'}")
    if reference.dtype != port.dtype and not any_type:
        return Unlike(f"dtype {reference.dtype} in {ours}, {port.dtype} in {theirs}")
    return not_finite(reference, port, sides)


def of_another_shape(a: np.ndarray, b: np.ndarray) -> str:
    """The same numbers laid out otherwise, exactly, as words to add to both shapes; "" if they are not."""
    if a.size != b.size or np.count_nonzero(a) < 2:
        return ""
    for axes in itertools.permutations(range(a.ndim)):
        if a.transpose(axes).shape == b.shape and np.array_equal(a.transpose(axes), b):
            return "transposed" if a.ndim == 2 else f"the axes are in the order {axes}"
    return "the same numbers in the same order" if np.array_equal(a.ravel(), b.ravel()) else ""


def not_finite(reference: np.ndarray, port: np.ndarray, sides: tuple[str, str] = ("torch", "JAX")) -> Unlike | None:
    """The first number that is not finite, if any: on one side, or elsewhere or otherwise on the other, or on both."""
    if np.isfinite(reference).all() and np.isfinite(port).all():
        return None
    a, b = np.asarray(reference, np.float64), np.asarray(port, np.float64)
    differ = (np.isfinite(a) != np.isfinite(b)) | (~np.isfinite(a) & ~equal(a, b))
    places = differ if differ.any() else ~np.isfinite(a)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(places), a.shape))
    at = f"at {list(index)}" if index else "there"
    more = f", the first of {int(places.sum()):,} places of {a.size:,}" if places.sum() > 1 else ""
    if not differ.any():
        return Unlike(f"{a[index]:g} on both sides {at}{more}", wrong=False)
    return Unlike(f"{b[index]:g} in {sides[1]}, {a[index]:g} in {sides[0]} {at}{more}")


def equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Elementwise, NaN with NaN."""
    return (a == b) | (np.isnan(a) & np.isnan(b))
