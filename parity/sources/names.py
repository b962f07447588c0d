"""How alike the names of a leaf and a torch array are."""

import re
from collections.abc import Iterable
from functools import cache
from itertools import permutations
from typing import NamedTuple

KINDS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "gamma": "weight", "w": "weight"}
KINDS |= {"beta": "bias", "b": "bias", "offset": "bias"}


class Name(NamedTuple):
    """A dotted name's words, in lower case and a weight always called weight, and its numbers."""

    words: frozenset[str]
    numbers: tuple[int, ...]


@cache
def parsed(name: str) -> Name:
    """ "h.0.ln_1.weight" has the words h, h0, ln, ln1, weight and the numbers 0, 1."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)
    words = {KINDS.get(part.lower(), part.lower()) for part in parts if not part.isdigit()}
    words |= {word.lower() + number for word, number in re.findall(r"([A-Za-z]+)[._]?(\d+)", name)}
    return Name(frozenset(words), tuple(int(part) for part in parts if part.isdigit()))


@cache
def likeness(one: str, other: str) -> float:
    """From 0 to 1: the share of their words that both have; q is short for query."""
    mine, theirs = parsed(one).words, parsed(other).words
    shared = sum(any(same_word(word, another) for another in theirs) for word in mine)
    return 2 * shared / max(1, len(mine) + len(theirs))


def same_word(one: str, other: str) -> bool:
    """Equal, or the one is the other's first letter."""
    return one == other or (min(len(one), len(other)) == 1 and one[0] == other[0])


def agreement(leaf: tuple[int, ...], at: tuple[int, ...], array: tuple[int, ...]) -> float:
    """Whether the numbers in a leaf's name and those of its place in a stack are those in an array's name.

    A layer's number stands first, or else somewhere between the others.
    """
    if array == at + leaf:
        return 1.0
    return 0.9 * any(array == leaf[:i] + at + leaf[i:] for i in range(1, len(leaf) + 1))


def parent(name: str) -> str:
    """The name of what holds it."""
    return name.rpartition(".")[0]


def pattern(name: str) -> str:
    """The name with its numbers left open: equal for one array of every layer."""
    return re.sub(r"\d+", "N", name)


def in_order(names: list[str]) -> bool:
    """Whether the numbers in the names ascend, those of layers first or those of experts."""
    numbers = [parsed(name).numbers for name in names]
    orders = permutations(range(len(numbers[0])))
    return any(rows == sorted(rows) for order in orders for rows in [[[row[i] for i in order] for row in numbers]])


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few of them."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
