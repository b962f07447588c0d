"""What both models are called with: arrays, and whatever else stays as it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from parity.capture import is_tensor, to_numpy
from twinstep.errors import UserError


class Inputs(NamedTuple):
    """Positional and keyword arguments; arrays are NumPy's, and what is none (flags, None) stays as it is."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def named(self) -> list[tuple[str, Any]]:
        """All by place or name."""
        return [*((str(number), x) for number, x in enumerate(self.args)), *self.kwargs.items()]

    def arrays(self) -> list[np.ndarray]:
        """All arrays in order."""
        return [x for x in (*self.args, *self.kwargs.values()) if isinstance(x, np.ndarray)]

    def shapes(self) -> list[tuple[int, ...]]:
        """Of the arrays."""
        return [x.shape for x in self.arrays()]

    def with_arrays(self, arrays: Sequence[Any]) -> "Inputs":
        """The same with others in their places."""
        rest = iter(arrays)
        replace = lambda x: next(rest) if isinstance(x, np.ndarray) else x
        args = tuple(map(replace, self.args))
        return Inputs(args, {name: replace(x) for name, x in self.kwargs.items()})

    def map(self, change: Callable[[np.ndarray], Any]) -> "Inputs":
        """The same with every array changed."""
        return self.with_arrays([change(x) for x in self.arrays()])


def read_inputs(inputs: Any, what: str) -> Inputs:
    """`inputs` as given: a sequence of arguments, or a dict of keyword arguments.

    Raises UserError for anything else, for an array without elements, and for one that is not finite: after those
    nothing can be compared. A mask of zeros and -inf is fine.
    """
    if isinstance(inputs, Mapping):
        named = {f"{what}[{name!r}]": x for name, x in inputs.items()}
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
        named = {f"{what}[{number}]": x for number, x in enumerate(inputs)}
    else:
        kind = type(inputs).__name__
        raise UserError(f"{what} is of type {kind}; pass a list of the arguments, or a dict of them by name")
    values = [read_input(x, name) for name, x in named.items()]
    if isinstance(inputs, Mapping):
        return Inputs((), dict(zip(inputs, values, strict=True)))
    return Inputs(tuple(values), {})


def read_input(x: Any, what: str) -> Any:
    """One argument: an array where it is one, or a list of numbers."""
    if is_tensor(x):
        x = to_numpy(x)
    elif hasattr(x, "__array__") or (isinstance(x, list | tuple) and is_numeric(x)):
        x = np.asarray(x)
    if not isinstance(x, np.ndarray):
        return x
    if x.size == 0:
        raise UserError(f"{what} has shape {x.shape}, so no elements; nothing could be compared")
    if is_floating(x):
        wide = x.astype(np.float64)
        mask = bool(np.all((wide == 0) | (wide == -np.inf)))
        if not mask and not np.isfinite(wide).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(wide))[0])
            raise UserError(f"{what} is {wide[at]} at {list(at)}; what follows from that cannot be compared")
    return x


def is_numeric(x: Any) -> bool:
    """Whether nested lists make one array of numbers."""
    try:
        return np.asarray(x).dtype.kind in "biuf"
    except ValueError:
        return False


def wide(x: np.ndarray) -> np.ndarray:
    """Floating point as float64, all else as it is."""
    return x.astype(np.float64) if is_floating(x) else x


def is_floating(x: np.ndarray) -> bool:
    """Whether its numbers are floating point, bfloat16 included."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))
