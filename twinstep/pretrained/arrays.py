"""Arrays as files hold them, as float32 or float64, and whether they are those of a model."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from twinstep.errors import UserError

# The types a file may hold, under safetensors' names. NumPy has no bfloat16: its bits are the upper half of a float32.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


def widen(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array as it was read with DTYPES[dtype], in float32 (float64 stays): every number stays what it is."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.array(array, np.float64 if dtype == "F64" else np.float32, order="C")


def check_arrays(
    where: object,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str | None = None,
) -> None:
    """Raises UserError naming the first array that is missing, left over, of another shape or type, or not finite.

    dtype: that of all arrays; None if it does not matter.
    """
    check_names(where, arrays, shapes)
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            raise UserError(f"{where}: {name} has shape {array.shape}, the configuration asks for {shapes[name]}")
        if dtype is not None and array.dtype != dtype:
            raise UserError(f"{where}: {name} has dtype {array.dtype}, the configuration asks for {dtype}")
        if not np.isfinite(array).all():
            raise UserError(f"{where}: {name} is not finite; take an earlier checkpoint")


def check_names(where: object, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Raises UserError naming the first key that is missing or left over, in the order of layers."""
    found, wanted = set(found), set(wanted)
    for problem, names in (("is missing", wanted - found), ("does not belong there", found - wanted)):
        for name in sorted(names, key=natural_order):
            others = f", nor {'do' if len(names) > 2 else 'does'} {len(names) - 1} more" if len(names) > 1 else ""
            if problem == "is missing":
                others = f", with {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{where}: the key {name!r} {problem}{others}; is it of this model?")


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts h.2 before h.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
