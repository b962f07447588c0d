"""What was found by value and yet looks wrong by its names."""

from collections.abc import Mapping
from itertools import combinations

from parity.sources.names import in_order, likeness, listed, parsed, pattern
from parity.sources.piece import Piece, Source, window_shape


def exchanged_names(sources: Mapping[str, Source]) -> list[str]:
    """Two leaves of one shape, each of which holds the numbers of the array that is named like the other."""
    single = {path: source for path, source in sources.items() if len({pattern(n) for n in source.names}) == 1}
    said = []
    for (one, mine), (other, theirs) in combinations(single.items(), 2):
        a, b = mine.names[0], theirs.names[0]
        if mine.shape != theirs.shape or a == b:
            continue
        if fits(one, b) > fits(one, a) and fits(other, a) > fits(other, b):
            said.append(f"{one} holds the numbers of {a}, and {other} those of {b}: exchanged?")
    return said


def fits(leaf: str, array: str) -> float:
    """How well the names go together, numbers of layers first."""
    mine, theirs = parsed(leaf).numbers, parsed(array).numbers
    return likeness(leaf, array) + (len(mine) == len(theirs) and mine == theirs)


def out_of_order(sources: Mapping[str, Source]) -> list[str]:
    """A stack of layers that is not in the order of their numbers, or with another array in some place."""
    said = []
    for path, source in sources.items():
        names, patterns = list(source.names), [pattern(name) for name in source.names]
        usual = max(patterns, key=patterns.count)
        if len(names) > 2 and patterns.count(usual) > len(names) // 2 and len(set(patterns)) > 1:
            strange = [name for name in names if pattern(name) != usual]
            said.append(f"{path} is a stack of {usual}, but for {', '.join(strange)} in it")
        kept = [name for name in names if pattern(name) == usual]
        if not in_order(kept):
            said.append(f"{path} holds {listed(kept, 4)} in this order, not in that of their numbers")
    return said


def shuffled(sources: Mapping[str, Source]) -> list[str]:
    """A leaf that holds one array's rows in another order, which no reshape of the one to the other explains."""
    said = []
    for path, source in sources.items():
        names = source.names
        in_chunks = len(names) < len(source.pieces) and source.copies
        if in_chunks or any(reorders(piece) for piece in source.pieces):
            said.append(f"{path} holds {listed(names)} in another order along an axis: gates or heads permuted?")
    return said


def reorders(piece: Piece) -> bool:
    """Whether it splits an axis, and yet has the window's own shape, perhaps transposed."""
    before = [length for length in window_shape(piece.cut, piece.take) if length > 1]
    after = [length for length in window_shape(piece.fit, piece.put) if length > 1]
    return sum(length > 1 for length in piece.split) > len(before) and sorted(before) == sorted(after)
