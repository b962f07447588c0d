"""The operations that are wrong: those on which the result depends, and of which nothing that agrees follows."""

from typing import NamedTuple

import numpy as np

from parity.lines.match import Side

LEAVES = ("parameter", "input", "constant")
PARTS = ("split", "slice", "select", "dynamic_slice", "gather", "index", "unbind")
FINE = ("agrees", "a part of what agrees", "")
PRODUCTS = ("dot_general", "mm", "bmm", "matmul", "einsum", "baddbmm", "addmm")


class Operand(NamedTuple):
    """An operand of a suspect, and what is known of it."""

    node: int
    status: str  # "agrees", "agrees, but for the order of its axes", ..., or "" where its numbers say nothing


def suspects(side: Side, among: set[int], backward: bool) -> list[int]:
    """In the order of their execution: unmatched, and nothing between them and the results is matched either.

    What is matched again later is only another way to compute the same. Only the first of each path: a suspect that
    follows from another is its consequence. among: what the results depend on. backward: the operations of the
    backward pass alone.
    """
    nodes, matched = side.graph.nodes, side.matched
    users = side.graph.users(among)
    excused: dict[int, bool] = {}  # itself or what follows from it is matched
    for number in sorted(among, reverse=True):
        known = side.telling[number] and side.matched(number)
        excused[number] = known or excuse(side, number, users[number], excused)
    found, parts, tainted, given = list[int](), list[int](), set[int](), set[int]()
    for number in sorted(among):
        node = nodes[number]
        if node.op in LEAVES or (node.inputs and given.issuperset(node.inputs) and same_numbers(side, number)):
            given.add(number)
        wrong = side.telling[number] and not excused[number] and number not in given and node.backward >= backward
        follows = any(operand in tainted for operand in node.inputs)
        if wrong and not follows and only_takes(side, number) and all(map(matched, node.inputs)):
            parts.append(number)  # if what is made of it is wrong, it may be right and unmatched
        elif wrong and not follows:
            found.append(number)
        if (wrong or follows) and number not in parts:
            tainted.add(number)
    return found + parts


def excuse(side: Side, number: int, users: list[int], excused: dict[int, bool]) -> bool:
    """Whether what reads an array shows that it is right. A part shows it of that part alone."""
    parts = [user for user in users if only_takes(side, user)]
    rest = [user for user in users if user not in parts]
    return any(excused[user] for user in rest) or (bool(parts) and all(excused[user] for user in parts))


def only_takes(side: Side, number: int) -> bool:
    """Whether an operation takes a part of its operand, as it is."""
    return side.graph.nodes[number].op.removeprefix("aten.") in PARTS


def same_numbers(side: Side, number: int) -> bool:
    """Whether an operation only copies its operand, or puts it into another shape."""
    nodes = side.graph.nodes
    return all(np.array_equal(nodes[number].fingerprint.sums, nodes[i].fingerprint.sums) for i in nodes[number].inputs)


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
        whole = only_takes(side, number) and all(map(side.matched, node.inputs))
        return "a part of what agrees" if whole else "no counterpart"
    words = {
        "swapped": "agrees, but for the order of its axes",
        "reordered": "the same numbers in another order",
    }
    return words.get(side.relation(number, tolerance), "agrees") if node.op not in LEAVES else "agrees"


def says_nothing(side: Side, number: int) -> bool:
    """Whether an array is one number many times over, as zeros are, or has fewer than a few."""
    own = side.graph.nodes[number].fingerprint
    return own.size < 2 or bool(own.sums[-1] == own.sums[-2])


def path_to_origin(side: Side, number: int, tolerance: float) -> list[int]:
    """From the suspect up to the operation that made it wrong: itself, or an earlier one with a wrong operand.

    That is where numbers were put in another order, a product's axes were exchanged, or integers or a mask got other
    values, which say too little to be suspects themselves.
    """
    path = [number]
    while (before := wrong_operand(side, path[-1], tolerance)) is not None and before not in path:
        path.append(before)
    swapped = "agrees, but for the order of its axes"
    if len(path) > 1 and status_of(side, path[1], tolerance) == swapped and not is_product(side, path[-1]):
        return path[:1]  # another layout, as that of images: no fault
    return path


def wrong_operand(side: Side, number: int, tolerance: float) -> int | None:
    """An operand that is computed, and known to be wrong; of several one with numbers that say something."""
    known = operands(side, number, tolerance)
    if any(side.telling[one.node] and one.status == "no counterpart" for one in known):
        return None
    wrong = [one.node for one in known if one.status not in FINE]
    wrong = [node for node in wrong if side.graph.nodes[node].op not in LEAVES]
    return next((node for node in wrong if side.telling[node]), next(iter(wrong), None))


def is_product(side: Side, number: int) -> bool:
    """Whether it is a product of matrices."""
    return side.graph.nodes[number].op.removeprefix("aten.") in PRODUCTS
