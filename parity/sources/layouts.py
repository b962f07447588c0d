"""How the numbers of one array are laid out in another: reshape, transpose, reshape, read off the numbers.

Whatever the factors are, each axis of the result, once split far enough, runs through the array with one stride. So
the strides are read off by comparing where numbers lie, and no head count or number of gates need be guessed.
"""

import itertools
from typing import NamedTuple

import numpy as np

from parity.sources.fingerprint import divisors, is_constant

TRIES = 60  # branches followed before two arrays count as not the same in another layout
FIRST = 32  # numbers compared before whole runs are


class Layout(NamedTuple):
    """`b` is `a.reshape(split).transpose(axes)`, in its own shape."""

    split: tuple[int, ...]
    axes: tuple[int, ...]


class Run(NamedTuple):
    """An axis: so many numbers, with this stride in the flat array."""

    stride: int
    length: int


def layout(a: np.ndarray, b: np.ndarray) -> Layout | None:
    """How `b` is made of `a`, of the same size, or None where no reshape, transpose, reshape does it."""
    if a.size == 0 or a.size != b.size:
        return None
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    if flat_a[0] != flat_b[0] or flat_a[-1] != flat_b[-1]:
        return None
    if is_constant(flat_b):
        return layout_of_a_constant(a.shape, b.shape) if is_constant(flat_a) else None
    return Search(flat_a, flat_b, a.shape).follow((), 1)


def layout_of_a_constant(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Layout:
    """Any would do: the one that gives the shape by a transpose, if there is one, or as it is."""
    shape = tuple(length for length in shape if length > 1) or (1,)
    wanted = tuple(length for length in wanted if length > 1) or (1,)
    for axes in itertools.permutations(range(len(shape))):
        if tuple(shape[axis] for axis in axes) == wanted:
            return Layout(shape, axes)
    return Layout(shape, tuple(range(len(shape))))


class Search:
    """The axes of `b`, from the innermost outwards, each followed as far as it runs through `a` with one stride."""

    def __init__(self, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> None:
        self.a, self.b, self.shape = a, b, shape
        self.strides = divisors(a.size)
        self.tries = TRIES

    def follow(self, runs: tuple[Run, ...], done: int) -> Layout | None:
        """The layout that begins with these runs, which hold the first `done` numbers of `b`."""
        if done == self.a.size:
            found = as_layout(runs, self.shape)
            whole = self.a.reshape(found.split).transpose(found.axes).reshape(-1)
            return found if np.array_equal(whole, self.b) else None
        for run in self.options(runs, done):
            self.tries -= 1
            if self.tries < 0:
                return None
            if longer := self.follow((*runs, run), done * run.length):
                return longer
        return None

    def options(self, runs: tuple[Run, ...], done: int) -> list[Run]:
        """The runs that may come next, longest first."""
        options = []
        lengths = divisors(self.a.size // done)[1:]
        for stride in self.strides:
            longest = self.equal(done, stride)
            candidates = [Run(stride, length) for length in lengths if length <= longest]
            options += [run for run in candidates if all(fit(run, other) for other in runs)]
        return sorted(options, key=lambda run: -run.length)

    def equal(self, done: int, stride: int) -> int:
        """How many numbers, `stride` apart in `a`, equal those that lie `done` apart in `b`."""
        count = min(self.a.size // done, self.a.size // stride)
        first = min(count, FIRST)
        for some in (first, count):
            unequal = self.a[::stride][:some] != self.b[::done][:some]
            if unequal.any():
                return int(np.argmax(unequal))
        return count


def fit(one: Run, other: Run) -> bool:
    """Whether both can be axes of one array: the shorter stride times its length divides the longer stride."""
    short, long = sorted((one, other))
    return long.stride % (short.stride * short.length) == 0


def as_layout(runs: tuple[Run, ...], shape: tuple[int, ...]) -> Layout:
    """The runs, innermost first, as a split and a transpose, with the array's own axes kept apart."""
    bounds = [int(np.prod(shape[axis:], dtype=np.int64)) for axis in range(1, len(shape))]
    fine = [part for run in reversed(runs) for part in cut(run, bounds)]
    order = sorted(fine, reverse=True)
    return Layout(tuple(run.length for run in order) or (1,), tuple(order.index(run) for run in fine) or (0,))


def cut(run: Run, bounds: list[int]) -> list[Run]:
    """The run, outermost part first, cut where an axis of the array begins inside it."""
    for bound in bounds:
        if run.stride < bound < run.stride * run.length and bound % run.stride == 0:
            if run.stride * run.length % bound:
                continue
            outer = Run(bound, run.stride * run.length // bound)
            return [*cut(outer, bounds), *cut(Run(run.stride, bound // run.stride), bounds)]
    return [run]
