"""Which torch arrays feed which leaf, found by value."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from parity.sources.arrays import Arrays, is_numeric, rounded
from parity.sources.blocks import block_of
from parity.sources.choose import choose
from parity.sources.doubts import exchanged_names, out_of_order, shuffled
from parity.sources.nearest import nearest
from parity.sources.piece import Source
from parity.sources.search import search, whole_or_side_by_side, with_windows


@dataclass(frozen=True)
class Found:
    """What feeds each leaf; of the rest, the nearest thing in words. `doubts` are sentences."""

    sources: dict[str, Source]
    missing: dict[str, str]
    unused: list[str]
    doubts: list[str]


def find_sources(arrays: Mapping[str, np.ndarray], leaves: Mapping[str, np.ndarray]) -> Found:
    """Match them by their numbers, exactly; a leaf of a narrower type holds the arrays rounded to it.

    arrays: torch's, each tied array once. leaves: by dotted path.
    Whatever is returned as a source gives the leaf, number by number.
    """
    known = Arrays(arrays)
    leaves = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    blocks = [block_of(path, leaf) for path, leaf in leaves.items() if leaf.size and is_numeric(leaf)]
    slots = {block.leaf: whole_or_side_by_side(block, known) for block in blocks}
    known.search_last(name for found in slots.values() for slot in found for name in slot.names)
    slots = {path: [with_windows(slot, known) for slot in found] for path, found in slots.items()}
    slots |= {block.leaf: search(block, known, (known.first, known.last)) for block in blocks if not slots[block.leaf]}
    flat = [slot for path in slots for slot in slots[path]]
    feeds, doubts = choose(flat)
    pieces: dict[str, list] = {path: [] for path in leaves}
    for slot, feed in zip(flat, feeds, strict=True):
        pieces[slot.block.leaf] += feed
    sources = {path: Source(leaves[path].shape, tuple(found)) for path, found in pieces.items() if found}
    sources = {path: source for path, source in sources.items() if gives(source, arrays, leaves[path])}
    missing = {path: nearest(leaf, known) for path, leaf in leaves.items() if path not in sources}
    fed = {name for source in sources.values() for name in source.names}
    doubts += [*out_of_order(sources), *shuffled(sources), *exchanged_names(sources)]
    return Found(sources, missing, [name for name in arrays if name not in fed], doubts)


def gives(source: Source, arrays: Mapping[str, np.ndarray], leaf: np.ndarray) -> bool:
    """Whether the source is the leaf."""
    return np.array_equal(rounded(source.carry(arrays), leaf.dtype), leaf)
