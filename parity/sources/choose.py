"""Which of several equal arrays feeds which leaf: by what feeds the leaf's neighbours, by names, then by order."""

import math
from collections.abc import Collection
from fractions import Fraction

from parity.sources.names import agreement, likeness, listed, parent, parsed
from parity.sources.piece import Piece
from parity.sources.search import Feed, Slot

Place = tuple[tuple[str, Fraction, Fraction], ...]  # the names of modules and which part of their arrays

ALL = Fraction(0), Fraction(1)


def choose(slots: list[Slot]) -> tuple[list[Feed], list[str]]:
    """A feed for each slot, equal arrays one to one as long as they last, and a sentence on each group of equals."""
    chosen = {i: slot.feeds[0] for i, slot in enumerate(slots) if len(slot.feeds) == 1}
    neighbours: dict[tuple[str, tuple[int, ...]], set[Place]] = {}
    for i, feed in chosen.items():
        neighbours.setdefault(place_of(slots[i]), set()).add(origin(feed))
    taken = {key(feed) for feed in chosen.values()}
    open_slots = [i for i in range(len(slots)) if i not in chosen]
    scores = {
        (i, j): score(slots[i], feed, neighbours.get(place_of(slots[i]), set()))
        for i in open_slots
        for j, feed in enumerate(slots[i].feeds)
    }
    ranked = sorted(scores, key=lambda pair: (-scores[pair], pair))
    for again in (False, True):  # a second time for those whose equals are all taken
        for i, j in ranked:
            feed = slots[i].feeds[j]
            if i not in chosen and (again or key(feed) not in taken):
                chosen[i] = feed
                taken.add(key(feed))
    tied = {i for i in open_slots if is_tied([scores[i, j] for j in range(len(slots[i].feeds))])}
    return [chosen[i] for i in range(len(slots))], sentences({i: slots[i] for i in open_slots}, tied)


def is_tied(scores: list[float]) -> bool:
    """Whether the best is not better than the next."""
    return scores.count(max(scores)) > 1


def score(slot: Slot, feed: Feed, neighbours: Collection[Place]) -> float:
    """A neighbour from the same module counts most, then the numbers in the names, then their words.

    All of an array is likelier than a part of it.
    """
    name = feed[0].name
    agree = agreement(parsed(slot.block.leaf).numbers, slot.block.at, parsed(name).numbers)
    entire = share(feed[0]) == ALL
    return 4 * bool(neighbours and origin(feed) in neighbours) + entire + agree + likeness(slot.block.leaf, name)


def place_of(slot: Slot) -> tuple[str, tuple[int, ...]]:
    """What holds the leaf, and where in it."""
    return parent(slot.block.leaf), slot.block.at


def origin(feed: Feed) -> Place:
    """The modules that hold the feed's arrays, and which part of each array it is."""
    return tuple((parent(piece.name), *share(piece)) for piece in feed)


def share(piece: Piece) -> tuple[Fraction, Fraction]:
    """From where to where it takes its array, of 1."""
    if math.prod(piece.cut) == piece.size:
        return ALL
    for length, index in zip(piece.cut, piece.take, strict=True):
        if isinstance(index, int):
            return Fraction(index, length), Fraction(index + 1, length)
        if index.step is None and index != slice(None):
            return Fraction(index.start, length), Fraction(index.stop, length)
    return ALL


def key(feed: Feed) -> tuple[object, ...]:
    """What it takes, whatever the layout."""
    return tuple((piece.name, share(piece)) for piece in feed)


def sentences(slots: dict[int, Slot], tied: set[int]) -> list[str]:
    """One sentence for each group of equal arrays."""
    groups: dict[frozenset[str], list[int]] = {}
    for i, slot in slots.items():
        groups.setdefault(frozenset(slot.names), []).append(i)
    said = []
    for names, members in groups.items():
        leaves = listed(dict.fromkeys(slots[i].block.leaf for i in members))
        many = f"{len(names)} torch arrays hold" if len(names) > 1 else "several parts of one torch array hold"
        means = "order" if tied.intersection(members) else "names"
        said.append(f"{many} the same numbers ({listed(sorted(names))}), told apart by their {means} in {leaves}")
    return said
