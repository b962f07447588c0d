"""How a leaf is made of torch arrays: a linear map that copies numbers, and its transpose, which carries gradients."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from parity.sources.wording import described

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Piece:
    """A window of one torch array, laid out anew, in a window of one leaf.

    `leaf.reshape(fit)[put]` holds `array.reshape(cut)[take].reshape(split).transpose(axes)`, in the window's shape.
    """

    name: str
    cut: tuple[int, ...]
    take: Index
    split: tuple[int, ...]
    axes: tuple[int, ...]
    fit: tuple[int, ...]
    put: Index

    def add(self, array: np.ndarray, leaf: np.ndarray) -> None:
        """Add the window of `array` to its place in `leaf`, which is contiguous."""
        leaf = leaf.reshape(self.fit)
        window = array.reshape(self.cut)[self.take].reshape(self.split).transpose(self.axes)
        leaf[self.put] += window.reshape(window_shape(self.fit, self.put))

    def add_back(self, leaf: np.ndarray, array: np.ndarray) -> None:
        """The transpose of `add`: add the window of `leaf` to its place in `array`, which is contiguous."""
        array = array.reshape(self.cut)
        window = leaf.reshape(self.fit)[self.put].reshape([self.split[axis] for axis in self.axes])
        window = window.transpose(np.argsort(self.axes))
        array[self.take] += window.reshape(window_shape(self.cut, self.take))

    @property
    def size(self) -> int:
        """How many numbers it copies."""
        return math.prod(self.split)


@dataclass(frozen=True)
class Source:
    """How one leaf is made of torch arrays: the sum of its pieces."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The torch arrays, in order, each once."""
        return tuple(dict.fromkeys(piece.name for piece in self.pieces))

    @property
    def copies(self) -> bool:
        """Whether each number of the leaf is one number of the arrays, and not a sum of several.

        An optimizer's update of a sum is not the sum of the updates.
        """
        return sum(piece.size for piece in self.pieces) == math.prod(self.shape)

    def carry(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The leaf, in the arrays' own type."""
        dtype = np.result_type(*(arrays[name].dtype for name in self.names))
        leaf = np.full(self.shape, -0.0, dtype)  # to which x is added as x, though it be -0
        for piece in self.pieces:
            piece.add(arrays[piece.name], leaf)
        return leaf

    def pull(self, leaf: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """What a gradient by the leaf is by each of its torch arrays, whose shapes are given.

        The transpose of `carry`: zeros where an array's numbers do not reach this leaf.
        """
        pulled = {name: np.zeros(shapes[name], leaf.dtype) for name in self.names}
        for piece in self.pieces:
            piece.add_back(leaf, pulled[piece.name])
        return pulled

    def renamed(self, names: Mapping[str, str]) -> "Source":
        """The same of arrays under other names, as tied ones have."""
        return Source(self.shape, tuple(replace(piece, name=names[piece.name]) for piece in self.pieces))

    def describe(self) -> str:
        """In words, for a table: "part 1 of 3 of h.0.attn.c_attn.weight on axis 1"."""
        return described(self)


def window_shape(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    """The shape of `array.reshape(shape)[index]`."""
    return np.broadcast_to(np.zeros(()), shape)[index].shape
