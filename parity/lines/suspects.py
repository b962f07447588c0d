"""The operations that are wrong: those on which the result depends, and of which nothing that agrees follows."""

from collections.abc import Collection
from typing import NamedTuple

from parity.lines.match import Side

LEAVES = ("parameter", "input", "constant")


class Operand(NamedTuple):
    """An operand of a suspect, and what is known of it."""

    node: int
    status: str  # "agrees", "agrees, but for the order of its axes", ..., or "" where its numbers say nothing


def suspects(side: Side, results: Collection[int], backward: bool) -> list[int]:
    """In the order of their execution: unmatched, and nothing between them and the results is matched either.

    What is matched again later is only another way to compute the same. Only the first of each path: a suspect that
    follows from another is its consequence. backward: among the operations of the backward pass alone.
    """
    nodes = side.graph.nodes
    among = set[int]().union(*(side.graph.ancestors(result) for result in results))
    users = side.graph.users(among)
    excused: dict[int, bool] = {}  # itself or what follows from it is matched
    for number in sorted(among, reverse=True):
        known = side.telling[number] and side.matched(number)
        excused[number] = known or any(excused[user] for user in users[number])
    found, tainted = list[int](), set[int]()
    for number in sorted(among):
        node = nodes[number]
        wrong = side.telling[number] and not excused[number] and node.op not in LEAVES and node.backward >= backward
        follows = any(operand in tainted for operand in node.inputs)
        if wrong and not follows:
            found.append(number)
        if wrong or follows:
            tainted.add(number)
    return found


def operands(side: Side, number: int, tolerance: float) -> list[Operand]:
    """What is known of each operand."""
    found = []
    for operand in dict.fromkeys(side.graph.nodes[number].inputs):
        found.append(Operand(operand, status_of(side, operand, tolerance)))
    return found


def status_of(side: Side, number: int, tolerance: float) -> str:
    """In words; "" of numbers that say nothing."""
    node = side.graph.nodes[number]
    if not side.telling[number]:
        if side.matched(number):
            return "agrees"
        return "" if says_nothing(side, number) else "no counterpart"
    if not side.matched(number):
        return "no counterpart"
    words = {
        "swapped": "agrees, but for the order of its axes",
        "reordered": "the same numbers in another order",
    }
    return words.get(side.relation(number, tolerance), "agrees") if node.op not in LEAVES else "agrees"


def says_nothing(side: Side, number: int) -> bool:
    """Whether an array is one number many times over, as zeros are, or has fewer than a few."""
    own = side.graph.nodes[number].fingerprint
    return own.size < 2 or bool(own.sums[-1] == own.sums[-2])


def origin(side: Side, number: int, tolerance: float) -> int:
    """The operation that made the suspect wrong: itself, or an earlier one of which an operand is known to be wrong.

    That is where axes were exchanged or numbers put in another order, or where integers or a mask got other values,
    which say too little to be suspects themselves.
    """
    seen = set[int]()
    while number not in seen:
        seen.add(number)
        known = operands(side, number, tolerance)
        if any(side.telling[one.node] and one.status == "no counterpart" for one in known):
            return number
        wrong = [one for one in known if one.status not in ("agrees", "")]
        if not wrong or side.graph.nodes[wrong[0].node].op in LEAVES:
            return number
        number = wrong[0].node
    return number
