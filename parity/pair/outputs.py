"""What a model returns, as floating arrays by path, and which of the one side belongs to which of the other."""

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.capture import is_tensor, parts_of
from twinstep.errors import UserError


def floating(output: Any, path: str = "") -> dict[str, Any]:
    """The floating arrays in an output of either framework by path, keys joined by dots; "" for a bare array.

    Goes into tuples, lists, dicts (Hugging Face's `ModelOutput` is one) and dataclasses; all else is left out.
    """
    if is_tensor(output):
        return {path: output} if output.dtype.is_floating_point else {}
    if isinstance(output, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return {path: output} if jnp.issubdtype(output.dtype, jnp.floating) else {}
    found: dict[str, Any] = {}
    for key, part in parts_of(output):
        found |= floating(part, f"{path}.{key}" if path else key)
    return found


def match_outputs(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], given: Mapping[str, str] | None
) -> dict[str, str]:
    """torch's path -> the port's: as given, or by equal paths, or the first of each where one side has a bare array.

    Raises UserError where a path that is given does not exist, and where nothing belongs together.
    """
    if given is not None:
        for side, known, asked in (("torch", ours, given.keys()), ("the port", theirs, given.values())):
            for path in asked:
                if path not in known:
                    raise UserError(f"outputs= names {path!r}, but the output of {side} has {listed(known)}")
        return dict(given)
    if not ours or not theirs:
        side = "torch's module" if not ours else "the port"
        raise UserError(f"{side} returns no floating array, so nothing can be compared")
    if "" in theirs or "" in ours:
        return {next(iter(ours)): next(iter(theirs))}
    if both := {path: path for path in ours if path in theirs}:
        return both
    if len(ours) == len(theirs):
        return dict(zip(ours, theirs, strict=True))
    raise UserError(f"torch returns {listed(ours)} and the port {listed(theirs)}; say in outputs= which is which")


def listed(paths: Mapping[str, Any]) -> str:
    """Paths for people."""
    return ", ".join(repr(path) if path else "a bare array" for path in paths) or "no floating array"


def axes_between(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, ...]:
    """The permutation of torch's axes that gives the port's layout; () where the shapes are equal, or none does.

    Of several that fit the shapes it is the one that leaves the smallest difference.
    """
    if ours.shape == theirs.shape or sorted(ours.shape) != sorted(theirs.shape):
        return ()
    fitting = [axes for axes in permutations(range(ours.ndim)) if ours.transpose(axes).shape == theirs.shape]
    if len(fitting) == 1:
        return fitting[0]
    return min(fitting, key=lambda axes: float(np.nansum(np.abs(ours.transpose(axes) - theirs))))
