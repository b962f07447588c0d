"""The line of torch's and the line of the port's that compute something else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from parity.lines.fingerprint import distance
from parity.lines.graph import Graph
from parity.lines.line import Line
from parity.lines.match import Side, match
from parity.lines.suspects import LEAVES, Operand, operands, origin, suspects

# From the rounding of float64 on. Tables that a code makes in float32 part by 1e-8 before anything is wrong.
TOLERANCES = (1e-11, 1e-9, 1e-7, 1e-5, 1e-3)
STANDS_OUT = 10  # how much larger than the tolerance the error of a suspect is
EXPLAINS = 1e-4  # of the results' error, what a suspect's own is at least: less of it is the rounding of a table


class Suspect(NamedTuple):
    """The first wrong operation of one side, and what went in."""

    side: Side
    node: int
    operands: list[Operand]
    line: Line | None


class Found(NamedTuple):
    """The first wrong operation of each side; None where a side has none."""

    torch: Suspect | None
    jax: Suspect | None
    tolerance: float


def find(torch: Graph, jax: Graph, results: Sequence[tuple[str, str]], backward: bool = False) -> Found | None:
    """Of results that differ, pairs of names: the first operations from which they do; None where none is known.

    backward: among the operations of the backward pass, whose lines are those of the forward operations.
    """
    ours = [torch.results[name] for name, _ in results if name in torch.results]
    theirs = [jax.results[name] for _, name in results if name in jax.results]
    best: Found | None = None
    wrong = max(
        (distance(torch.nodes[a].fingerprint, jax.nodes[b].fingerprint) for a, b in zip(ours, theirs, strict=True)),
        default=0.0,
    )
    for tolerance in TOLERANCES:
        sides = match(torch, jax, tolerance)
        found = suspects(sides[0], ours, backward), suspects(sides[1], theirs, backward)
        if not any(found):
            break
        chosen = closest(sides, found[0] or ours, found[1] or theirs)
        pair = [None if one is None else suspect(side, one, tolerance) for side, one in zip(sides, chosen, strict=True)]
        best = Found(pair[0], pair[1], tolerance)
        if all(one is None or rests_on_agreement(one) for one in pair) and stands_out(
            sides, chosen, max(STANDS_OUT * tolerance, min(1.0, wrong) * EXPLAINS)
        ):
            break
    return best


def closest(sides: tuple[Side, Side], ours: list[int], theirs: list[int]) -> tuple[int | None, int | None]:
    """The first suspects of both sides that read the same: those of one wrong place, not of two."""
    for one in ours:
        for other in theirs:
            if shared(sides, one, other):
                return one, other
    return (ours[0] if ours else None), (theirs[0] if theirs else None)


def shared(sides: tuple[Side, Side], one: int, other: int) -> bool:
    """Whether an operand of one is an operand of the other."""
    read = set(sides[1].graph.nodes[other].inputs)
    return any(
        read.intersection(sides[0].matches[operand])
        for operand in sides[0].graph.nodes[one].inputs
        if sides[0].telling[operand]
    )


def suspect(side: Side, number: int, tolerance: float) -> Suspect:
    """With the operation that made it wrong in its place, where another one did."""
    number = origin(side, number, tolerance)
    known = operands(side, number, tolerance)
    return Suspect(side, number, known, line_of(side, number, known))


def rests_on_agreement(one: Suspect) -> bool:
    """Whether all that went in agrees, or says nothing."""
    return all(operand.status in ("agrees", "") for operand in one.operands if one.side.telling[operand.node])


def stands_out(sides: tuple[Side, Side], chosen: tuple[int | None, int | None], least: float) -> bool:
    """Whether the suspects are further apart than that, or from any of the other side's arrays."""
    both = [side.graph.nodes[number] for side, number in zip(sides, chosen, strict=True) if number is not None]
    if len(both) == 2 and both[0].fingerprint.size == both[1].fingerprint.size:
        return distance(both[0].fingerprint, both[1].fingerprint) >= least
    for side, number in zip(sides, chosen, strict=True):
        if number is not None:
            own = side.graph.nodes[number].fingerprint
            off = min((distance(own, node.fingerprint) for node in side.other.nodes), default=float("inf"))
            if off < least and not side.matched(number):
                return False
    return True


def line_of(side: Side, number: int, known: list[Operand]) -> Line | None:
    """The suspect's line; a region where something that went in has no counterpart either."""
    node = side.graph.nodes[number]
    if node.line is None or all(one.status != "no counterpart" or not side.telling[one.node] for one in known):
        return node.line
    lines = [node.line]
    waiting, seen = list(node.inputs), set[int]()
    while waiting:
        operand = waiting.pop()
        other = side.graph.nodes[operand]
        if operand in seen or side.matched(operand) or other.op in LEAVES:
            continue
        seen.add(operand)
        waiting += other.inputs
        if other.line and (other.line.file, other.line.function) == (node.line.file, node.line.function):
            lines.append(other.line)
    first, last = min(line.first for line in lines), max(line.last for line in lines)
    return replace(node.line, first=first, last=last, exact=False)
