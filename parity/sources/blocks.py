"""A part of a leaf, whose origin is looked for."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parity.sources.fingerprint import along_axes, fingerprint, is_constant
from parity.sources.layouts import Layout
from parity.sources.piece import Index, Piece


@dataclass(frozen=True)
class Block:
    """A window of a leaf: `numbers` are `leaf.reshape(fit)[put]`. `at`: its place among the leaf's parts."""

    leaf: str
    numbers: np.ndarray
    fit: tuple[int, ...]
    put: Index
    at: tuple[int, ...] = ()

    @cached_property
    def mark(self) -> int:
        """The fingerprint of its numbers."""
        return fingerprint(self.numbers)

    @cached_property
    def slices(self) -> list[np.ndarray]:
        """The fingerprints of the slices along each axis."""
        return along_axes(self.numbers)

    @cached_property
    def is_constant(self) -> bool:
        """Whether all its numbers are equal, so that no layout can be read off them."""
        return is_constant(self.numbers)

    def part(self, axis: int, groups: int, start: int, stop: int, number: int) -> "Block":
        """From `start` to `stop` of each of the groups that an axis is made of; one alone is without the axis."""
        place = [i for i, index in enumerate(self.put) if isinstance(index, slice)][axis]
        within = start if stop == start + 1 else slice(start, stop)
        length = self.numbers.shape[axis]
        if groups == 1:
            fit, put = self.fit, (*self.put[:place], within, *self.put[place + 1 :])
        else:
            fit = (*self.fit[:place], groups, length // groups, *self.fit[place + 1 :])
            put = (*self.put[: place + 1], within, *self.put[place + 1 :])
        split = (*self.numbers.shape[:axis], groups, length // groups, *self.numbers.shape[axis + 1 :])
        numbers = self.numbers.reshape(split)[(slice(None),) * (axis + 1) + (within,)]
        if groups == 1:
            numbers = numbers[(slice(None),) * axis + (0,)]
        return Block(self.leaf, numbers, fit, put, (*self.at, number))

    def whole_axes(self) -> list[int]:
        """The axes that can be cut further: those of which it holds all."""
        ranges = [index for index in self.put if isinstance(index, slice)]
        return [axis for axis, index in enumerate(ranges) if index == slice(None)]

    def piece(self, name: str, cut: tuple[int, ...], take: Index, found: Layout) -> Piece:
        """The piece that fills it from this window of this array."""
        return Piece(name, cut, take, found.split, found.axes, self.fit, self.put)


def block_of(leaf: str, numbers: np.ndarray) -> Block:
    """The whole leaf."""
    return Block(leaf, numbers, numbers.shape, (slice(None),) * numbers.ndim)
