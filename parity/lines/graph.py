"""What one side computed: its operations with their inputs, their lines, and what is remembered of their numbers."""

from typing import NamedTuple

from parity.lines.fingerprint import Fingerprint
from parity.lines.line import Line


class Node(NamedTuple):
    """One array: what an operation returned, a parameter, an input or a constant."""

    op: str  # "aten.mul", "dot_general"; "parameter", "input" or "constant" for a leaf
    inputs: tuple[int, ...]  # the nodes of its operands
    shape: tuple[int, ...]
    line: Line | None  # the innermost line of the user's own code; None where there is none
    library: Line | None  # a library's line, where one lies deeper than the user's
    fingerprint: Fingerprint
    name: str = ""  # a leaf's
    backward: bool = False  # whether it belongs to the backward pass; its line is then that of the forward operation


class Graph(NamedTuple):
    """The nodes in the order of their execution, every one after its inputs; and what was asked for, by name."""

    nodes: list[Node]
    results: dict[str, int]

    def ancestors(self, result: int) -> set[int]:
        """The nodes that one depends on, itself among them."""
        found, waiting = set[int](), [result]
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += self.nodes[number].inputs
        return found

    def users(self, among: set[int]) -> dict[int, list[int]]:
        """Of each node, those of `among` that read it."""
        readers: dict[int, list[int]] = {number: [] for number in among}
        for number in sorted(among):
            for operand in self.nodes[number].inputs:
                if operand in readers:
                    readers[operand].append(number)
        return readers
