"""Where the numbers of a block come from: one array, several side by side, a window, a sum of two, or a stack."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from parity.sources.arrays import Arrays, rounded
from parity.sources.blocks import Block
from parity.sources.fingerprint import divisors, is_constant, windows
from parity.sources.layouts import layout
from parity.sources.piece import Index, Piece

Feed = tuple[Piece, ...]  # the pieces whose sum is a block

DEPTH = 2  # how often a leaf is cut into parts that are looked for one by one
MOST_UNEQUAL = 8  # arrays of several sizes side by side
MOST_SLICES = 1024  # of a stack whose slices are looked for one by one
MOST_CHUNKS = 8  # of one array, in another order


@dataclass(frozen=True)
class Slot:
    """A block and what may feed it: several feeds where arrays hold equal numbers."""

    block: Block
    feeds: tuple[Feed, ...]

    @property
    def names(self) -> set[str]:
        """All arrays that may feed it."""
        return {piece.name for feed in self.feeds for piece in feed}


def search(block: Block, arrays: Arrays, turns: Sequence[list[str]], depth: int = DEPTH) -> list[Slot]:
    """The slots that make up the block; empty where it is not found. turns: the arrays whose windows it may be."""
    if slots := whole_or_side_by_side(block, arrays):
        return slots
    if feeds := windows_of_arrays(block, arrays, turns) or sums_of_two(block, arrays):
        return [Slot(block, feeds)]
    return part_by_part(block, arrays, depth - 1) if depth else []


def whole_or_side_by_side(block: Block, arrays: Arrays) -> list[Slot]:
    """The block as whole arrays, one or several."""
    feeds = whole_arrays(block, arrays)
    return [Slot(block, feeds)] if feeds else side_by_side(block, arrays)


def with_windows(slot: Slot, arrays: Arrays) -> Slot:
    """Zeros may as well be a part of larger zeros that feed nothing yet: their neighbours will tell."""
    if not slot.block.is_constant:
        return slot
    return Slot(slot.block, slot.feeds + windows_of_arrays(slot.block, arrays, [arrays.first]))


def whole_arrays(block: Block, arrays: Arrays) -> tuple[Feed, ...]:
    """The arrays that are the block in another layout."""
    names = arrays.with_mark(block.mark, block.numbers.size, block.numbers.dtype)
    return tuple(feed for name in names if (feed := fed_by(block, arrays, name)))


def fed_by(block: Block, arrays: Arrays, name: str) -> Feed | None:
    """The block as this whole array in another layout, its kernel flipped where that is needed."""
    array = arrays.rounded(name, block.numbers.dtype)
    if found := window(block, array, name, array.shape, (slice(None),) * array.ndim):
        return found
    if array.ndim < 3:
        return None
    return window(block, array, name, array.shape, (slice(None),) * 2 + (slice(None, None, -1),) * (array.ndim - 2))


def window(block: Block, array: np.ndarray, name: str, cut: tuple[int, ...], take: Index) -> Feed | None:
    """The block as this window of the array in another layout."""
    found = layout(array.reshape(cut)[take], block.numbers)
    return (block.piece(name, cut, take, found),) if found else None


def side_by_side(block: Block, arrays: Arrays) -> list[Slot]:
    """Whole arrays side by side on an axis (a stack, a concatenation), or alternating on it, a few rows of each."""
    for axis in block.whole_axes():
        length = block.numbers.shape[axis]
        for groups in divisors(length)[:-1]:
            slices = block.slices[axis].reshape(groups, -1).sum(axis=0)
            for stops in sequences(slices, block, arrays):
                starts = [0, *stops[:-1]]
                parts = [block.part(axis, groups, *ends, i) for i, ends in enumerate(zip(starts, stops, strict=True))]
                if slots := all_found(one_array(part, arrays) for part in parts):
                    return slots
    return []


def one_array(block: Block, arrays: Arrays) -> list[Slot]:
    """The block as a whole array, or as the chunks of one in another order."""
    feeds = whole_arrays(block, arrays)
    return [Slot(block, feeds)] if feeds else part_by_part(block, arrays, 0)


def sequences(slices: np.ndarray, block: Block, arrays: Arrays) -> Iterator[list[int]]:
    """Where the arrays end that lie side by side by their fingerprints: arrays of one size, then of several."""
    unit = block.numbers.size // len(slices)
    lengths = [size // unit for size in arrays.by_size if size % unit == 0 and size // unit < len(slices)]

    def matches(start: int, length: int) -> bool:
        mark = int(slices[start : start + length].sum())
        return bool(arrays.with_mark(mark, length * unit, block.numbers.dtype))

    for length in lengths:
        if len(slices) % length == 0 and all(matches(start, length) for start in range(0, len(slices), length)):
            yield list(range(length, len(slices) + 1, length))

    def follow(stops: list[int]) -> list[int] | None:
        start = stops[-1] if stops else 0
        if start == len(slices) or len(stops) == MOST_UNEQUAL:
            return stops if start == len(slices) else None
        nexts = (length for length in lengths if start + length <= len(slices) and matches(start, length))
        return next((found for length in nexts if (found := follow([*stops, start + length]))), None)

    if found := follow([]):
        yield found


def windows_of_arrays(block: Block, arrays: Arrays, turns: Sequence[list[str]]) -> tuple[Feed, ...]:
    """Windows of larger arrays that are the block in another layout: of the first of these lists that has any."""
    if block.numbers.size < 2:
        return ()
    for names in turns:
        feeds: list[Feed] = []
        for name in names:
            if arrays.arrays[name].size > block.numbers.size:
                feeds += windows_of(block, arrays, name)
            if feeds and not block.is_constant:
                return tuple(feeds)
        if feeds:
            return tuple(feeds)
    return ()


def windows_of(block: Block, arrays: Arrays, name: str) -> Iterator[Feed]:
    """The windows of one array, on each axis: a few slices side by side, or the same few of each of several groups."""
    array, size = arrays.rounded(name, block.numbers.dtype), block.numbers.size
    if block.is_constant and not is_constant(array):
        return
    for axis, length in enumerate(array.shape):
        for groups in divisors(length)[:-1]:
            within = length // groups
            taken, rest = divmod(size * within, array.size)
            if rest or not 0 < taken < within or (block.is_constant and groups > 1):
                continue
            slices = arrays.along_axes(name, block.numbers.dtype)[axis].reshape(groups, within).sum(axis=0)
            for start in np.flatnonzero(windows(slices, taken) == np.uint64(block.mark)).tolist():
                if block.is_constant and start % taken:
                    continue
                cut = array.shape if groups == 1 else (*array.shape[:axis], groups, within, *array.shape[axis + 1 :])
                chosen = start if taken == 1 else slice(start, start + taken)
                place = axis + (groups > 1)
                take = (*(slice(None),) * place, chosen, *(slice(None),) * (len(cut) - place - 1))
                if feed := window(block, array, name, cut, take):
                    yield feed


def sums_of_two(block: Block, arrays: Arrays) -> tuple[Feed, ...]:
    """Two arrays of one shape whose sum is the block in another layout, as an LSTM's two biases."""
    dtype, flat = block.numbers.dtype, block.numbers.reshape(-1)
    names = arrays.by_size.get(flat.size, [])
    if len(names) < 2:
        return ()
    kept = [arrays.arrays[name].reshape(-1) for name in names]
    ends = np.array([[float(array[0]), float(array[-1])] for array in kept])
    sums = rounded(ends[:, None] + ends, dtype).astype(np.float64)
    close = np.isclose(sums, [float(flat[0]), float(flat[-1])], rtol=0.01, atol=0).all(axis=-1)
    feeds = []
    for i, j in np.argwhere(np.triu(close, 1)).tolist():
        one, other = (arrays.arrays[names[k]] for k in (i, j))
        found = layout(rounded(one + other, dtype), block.numbers) if one.shape == other.shape else None
        if found:
            take = (slice(None),) * one.ndim
            feeds.append(tuple(block.piece(names[k], one.shape, take, found) for k in (i, j)))
    return tuple(feeds)


def part_by_part(block: Block, arrays: Arrays, depth: int) -> list[Slot]:
    """Each slice of a stack, or each of a few chunks, looked for by itself.

    Where one array has the block's numbers, only chunks of it in another order: rows at random are not a layout.
    """
    same_numbers = arrays.with_mark(block.mark, block.numbers.size, block.numbers.dtype)
    for axis in block.whole_axes():
        length = block.numbers.shape[axis]
        counts = [count for count in range(2, MOST_CHUNKS + 1) if length % count == 0 and count < length]
        if length <= MOST_SLICES and block.numbers.ndim > 1 and not same_numbers:
            counts.insert(0, length)
        for count in counts:
            step = length // count
            parts = (block.part(axis, 1, i * step, (i + 1) * step, i) for i in range(count))
            if slots := all_found(search(part, arrays, [same_numbers or arrays.first], depth) for part in parts):
                return slots
    return []


def all_found(each: Iterable[list[Slot]]) -> list[Slot]:
    """All slots, or none where one part is not found."""
    slots: list[Slot] = []
    for found in each:
        if not found:
            return []
        slots += found
    return slots
