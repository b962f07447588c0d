"""What was found by value and yet looks wrong by its names."""

from collections.abc import Mapping
from itertools import combinations

from parity.sources.names import in_order, likeness, parsed, pattern
from parity.sources.piece import Source


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
            some = ", ".join(kept[:4]) + (", ..." if len(kept) > 4 else "")
            said.append(f"{path} holds {some} in this order, not in that of their numbers")
    return said
