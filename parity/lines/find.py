"""The line of torch's and the line of the port's that compute something else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from parity.lines.fingerprint import distance
from parity.lines.graph import Graph, Node
from parity.lines.line import Line
from parity.lines.match import Side, match
from parity.lines.origins import in_order, origins, with_counterpart
from parity.lines.suspects import FINE, LEAVES, Operand, only_takes, operands, suspects

# From the rounding of float64 on. Tables that a code makes in float32 part by 1e-8 before anything is wrong.
TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9, 1e-11)
CAUSE = 1e-4  # of the results' error, what the first wrong number's own is rarely less than
STANDS_OUT = 10  # how much larger than the tolerance the error of a suspect is


class Suspect(NamedTuple):
    """The first wrong operation of one side, and what went in."""

    side: Side
    node: int
    operands: list[Operand]
    line: Line | None


class Found(NamedTuple):
    """The first wrong operation of each side; None where a side has none. together: surely one place."""

    torch: Suspect | None
    jax: Suspect | None
    tolerance: float
    together: bool


def find(torch: Graph, jax: Graph, results: Sequence[tuple[str, str]], backward: bool = False) -> Found | None:
    """Of results that differ, pairs of names: the first operations from which they do; None where none is known.

    backward: among the operations of the backward pass, whose lines are those of the forward operations.
    """
    both = [(torch.results[a], jax.results[b]) for a, b in results if a in torch.results and b in jax.results]
    ours, theirs = [a for a, _ in both], [b for _, b in both]
    among = depends_on(torch, ours), depends_on(jax, theirs)
    # A gradient that is missing depends on nothing: what it would be made of is looked for everywhere.
    known = (set(range(len(torch.nodes))), set(range(len(jax.nodes)))) if backward else among
    best: Found | None = None
    for tolerance in in_turn([(torch.nodes[a], jax.nodes[b]) for a, b in both]):
        sides = match(torch, jax, known, tolerance)
        found = [suspects(side, nodes, backward) for side, nodes in zip(sides, among, strict=True)]
        if not any(found):
            continue
        chosen = closest(sides, found[0] or ours, found[1] or theirs)
        alone = backward and not (all(found) and shared(sides, *chosen))
        blamed = with_counterpart(sides, *found) if alone else origins(sides, chosen, tolerance)
        pair = [None if one is None else suspect(side, one, tolerance) for side, one in zip(sides, blamed, strict=True)]
        together = not alone and (not all(found) or (shared(sides, *chosen) and alike(sides, *blamed)))
        answer = Found(pair[0], pair[1], tolerance, together)
        best = best or answer
        rests = all(one is None or rests_on_agreement(one) for one in pair)
        if rests and stands_out(sides, chosen, STANDS_OUT * tolerance):
            return answer
    if best is not None:
        return best._replace(together=False)
    return of_results(match(torch, jax, known, TOLERANCES[-1]), both)


def of_results(sides: tuple[Side, Side], both: Sequence[tuple[int, int]]) -> Found | None:
    """Where nothing between says enough, as behind a loss: what makes the results of arrays that agree."""
    tolerance = TOLERANCES[-1]
    pairs = [(sides[0].graph.nodes[a], sides[1].graph.nodes[b]) for a, b in both]
    if all(distance(a.fingerprint, b.fingerprint) <= tolerance and in_order(a, b, tolerance) for a, b in pairs):
        return None
    blamed = origins(sides, both[0], tolerance)
    pair = [None if one is None else suspect(side, one, tolerance) for side, one in zip(sides, blamed, strict=True)]
    return Found(pair[0], pair[1], tolerance, True)


def depends_on(graph: Graph, results: Sequence[int]) -> set[int]:
    """All that these depend on."""
    return set[int]().union(*(graph.ancestors(result) for result in results))


def in_turn(results: Sequence[tuple[Node, Node]]) -> list[float]:
    """The tolerances in the order in which they are tried: from that which fits the results' error to finer ones.

    A wrong number's error is rarely much less than what becomes of it: what is, is the rounding of a table.
    """
    error = max((distance(a.fingerprint, b.fingerprint) for a, b in results), default=1.0)
    fine = [tolerance for tolerance in TOLERANCES if tolerance <= CAUSE * error]
    return fine + [tolerance for tolerance in reversed(TOLERANCES) if CAUSE * error < tolerance < error]


def closest(sides: tuple[Side, Side], ours: list[int], theirs: list[int]) -> tuple[int | None, int | None]:
    """The first suspects of both sides that read the same: those of one wrong place, not of two.

    Before others those that calculate: what only takes a part of its operand is rarely wrong. And before those that
    scale the same numbers by different factors, which may make up for it later.
    """
    pairs = [(one, other) for one in ours for other in theirs if shared(sides, one, other)]
    if pairs:
        parts = lambda one, other: only_takes(sides[0], one) + only_takes(sides[1], other)
        return min(pairs, key=lambda pair: (parts(*pair), proportional(sides, *pair)))
    return (ours[0] if ours else None), (theirs[0] if theirs else None)


def proportional(sides: tuple[Side, Side], one: int, other: int) -> bool:
    """Whether two arrays are multiples of each other."""
    a, b = sides[0].graph.nodes[one].fingerprint, sides[1].graph.nodes[other].fingerprint
    return a.size == b.size and bool(np.allclose(a.sums[1:], b.sums[1:], rtol=0, atol=TOLERANCES[-1]))


def shared(sides: tuple[Side, Side], one: int | None, other: int | None) -> bool:
    """Whether an operand of one is an operand of the other."""
    if one is None or other is None:
        return False
    read = set(sides[1].graph.nodes[other].inputs)
    return any(
        read.intersection(sides[0].matches[operand])
        for operand in sides[0].graph.nodes[one].inputs
        if sides[0].telling[operand]
    )


def alike(sides: tuple[Side, Side], one: int | None, other: int | None) -> bool:
    """Whether both make as many numbers: else one side computes something that the other never does."""
    sizes = [side.graph.nodes[n].fingerprint.size for side, n in zip(sides, (one, other), strict=True) if n is not None]
    return len(set(sizes)) <= 1


def suspect(side: Side, number: int, tolerance: float) -> Suspect:
    """With what went in."""
    known = operands(side, number, tolerance)
    return Suspect(side, number, known, line_of(side, number, known))


def rests_on_agreement(one: Suspect) -> bool:
    """Whether all that went in agrees, says nothing, or was not computed: a table that is wrong from the start."""
    return all(operand.status in FINE for operand in computed(one.side, one.operands))


def computed(side: Side, known: list[Operand]) -> list[Operand]:
    """The operands that say something and are no leaves."""
    return [one for one in known if side.telling[one.node] and side.graph.nodes[one.node].op not in LEAVES]


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
    if node.line is None:
        return node.library  # a library's layer that no code of the user's calls
    if all(one.status != "no counterpart" for one in computed(side, known)):
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
