"""Where a suspect comes from: an order that was lost before it, or a gradient that only one side takes."""

from parity.lines.graph import Node
from parity.lines.match import Side, relation
from parity.lines.suspects import path_to_origin


def with_counterpart(sides: tuple[Side, Side], ours: list[int], theirs: list[int]) -> tuple[int | None, int | None]:
    """A gradient that only one side computes, and the operation of the other's forward pass through which none goes.

    It is the one that comes last in the forward pass, from where the other's gradients are wrong as well.
    """
    found: list[tuple[int, int, int]] = []  # place in the forward pass of JAX, and both nodes
    for side, number in ((0, ours), (1, theirs)):
        if number and (pair := forward_pair(sides, side, number[0])) is not None:
            nodes = (number[0], pair[1]) if side == 0 else (pair[1], number[0])
            found.append((pair[1 - side], *nodes))
    if not found:
        return (ours[0] if ours else None), (theirs[0] if theirs else None)
    _, one, other = max(found)
    return one, other


def forward_pair(sides: tuple[Side, Side], side: int, number: int) -> tuple[int, int] | None:
    """The last operation of the forward pass on the line of a gradient's that the other side has too; and that one."""
    own, line = sides[side], sides[side].graph.nodes[number].line
    known = [
        (n, match)
        for n, node in enumerate(own.graph.nodes)
        if node.line == line and not node.backward and own.telling[n]
        for match in own.matches[n]
        if own.other.nodes[match].line and not own.other.nodes[match].backward
    ]
    return max(known, default=None)


def origins(
    sides: tuple[Side, Side], chosen: tuple[int | None, int | None], tolerance: float
) -> tuple[int | None, int | None]:
    """The operations that made the suspects wrong. Where one put equal numbers in another order, its counterpart."""
    paths = [[] if n is None else path_to_origin(side, n, tolerance) for side, n in zip(sides, chosen, strict=True)]
    found = [path[-1] if path else None for path in paths]
    for side, (own, other) in enumerate((paths, paths[::-1])):
        if own and len(other) > 1:
            same = [
                n
                for number in other[1:]
                for n in sides[1 - side].matches[number]
                if out_of_order(sides, side, n, number, tolerance)
            ]
            found[side] = min([*same, *own[1:]], default=own[0])
    return found[0], found[1]


def out_of_order(sides: tuple[Side, Side], side: int, own: int, other: int, tolerance: float) -> bool:
    """Whether two arrays of equal numbers, which say something, can be told to differ in their order."""
    nodes = sides[side].graph.nodes[own], sides[1 - side].graph.nodes[other]
    return sides[side].telling[own] and not in_order(*nodes, tolerance)


def in_order(one: Node, other: Node, tolerance: float) -> bool:
    """Whether nothing is known that tells the order of two arrays apart."""
    return relation(one, other, tolerance) not in ("swapped", "reordered")
