"""Which arrays of one side are those of the other: found by their numbers, whatever their order, names and lines."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from parity.lines.fingerprint import Fingerprint, distance
from parity.lines.graph import Graph, Node

Relation = Literal["same", "transposed", "swapped", "reordered", "unknown"]
ORDER = 10  # what a sum over an axis may be off by, in units of the tolerance
LOST = 1e-13  # of what went in: what is left of a difference of equal numbers is rounding


class Side(NamedTuple):
    """A graph, which of its arrays say something, and the arrays of the other side with the same numbers."""

    graph: Graph
    telling: list[bool]
    matches: list[list[int]]
    other: Graph

    def matched(self, number: int) -> bool:
        """Whether the other side has these numbers."""
        return bool(self.matches[number])

    def relation(self, number: int, tolerance: float) -> Relation:
        """How the numbers stand in the nearest of the other side's arrays that have them."""
        own = self.graph.nodes[number]
        found = {relation(own, self.other.nodes[match], tolerance) for match in self.matches[number]}
        order: tuple[Relation, ...] = ("same", "transposed", "swapped", "reordered")
        return next((one for one in order if one in found), "unknown")


def match(torch: Graph, jax: Graph, tolerance: float) -> tuple[Side, Side]:
    """Both sides with their counterparts: arrays of equal numbers, or of the same numbers several times over."""
    telling = telling_nodes(torch), telling_nodes(jax)
    found = counterparts(torch, telling[0], jax, telling[1], tolerance)
    back: list[list[int]] = [[] for _ in jax.nodes]
    for number, matches in enumerate(found):
        for one in matches:
            back[one].append(number)
    return Side(torch, telling[0], found, jax), Side(jax, telling[1], back, torch)


def telling_nodes(graph: Graph) -> list[bool]:
    """Which arrays say something: many different numbers, and more than the rounding of what went in."""

    def lost(node: Node) -> bool:
        sizes = [graph.nodes[i].fingerprint.sums[0] for i in node.inputs]
        return bool(sizes) and node.fingerprint.sums[0] < LOST * min(sizes)

    return [node.fingerprint.telling and not lost(node) for node in graph.nodes]


def counterparts(
    ours: Graph, telling: Sequence[bool], theirs: Graph, their_telling: Sequence[bool], tolerance: float
) -> list[list[int]]:
    """Of each of our nodes, theirs with the same numbers: telling ones within the tolerance, others exactly."""
    loud = [i for i, says in enumerate(their_telling) if says]
    loud.sort(key=lambda i: theirs.nodes[i].fingerprint.sums[0])
    sums = np.array([theirs.nodes[i].fingerprint.sums for i in loud]).reshape(len(loud), -1)
    sizes = np.array([theirs.nodes[i].fingerprint.size for i in loud])
    quiet: dict[tuple, list[int]] = {}
    for i, node in enumerate(theirs.nodes):
        if not their_telling[i]:
            quiet.setdefault(quiet_key(node.fingerprint), []).append(i)

    found: list[list[int]] = []
    for node, says in zip(ours.nodes, telling, strict=True):
        own = node.fingerprint
        if not says:
            candidates = quiet.get(quiet_key(own), [])
            found.append([i for i in candidates if distance(own, theirs.nodes[i].fingerprint) <= 1e-12])
            continue
        rms = own.sums[0]
        low, high = np.searchsorted(sums[:, 0], [rms * (1 - tolerance), rms * (1 + tolerance)])
        near = sums[low:high, 1:]
        off = np.abs(near - own.sums[1:]) / (1 + np.abs(own.sums[1:]))
        size = sizes[low:high]
        whole = (size % own.size == 0) | (own.size % np.maximum(size, 1) == 0)
        found.append([loud[low + i] for i in np.flatnonzero((off.max(axis=1, initial=0) <= tolerance) & whole)])
    return found


def quiet_key(own: Fingerprint) -> tuple:
    """What arrays that say little are first told apart by. A mask is also its complement."""
    if own.kind == "bool":
        share = float(own.sums[0]) ** 2
        return own.kind, round(min(share, 1 - share), 12)
    return own.kind, own.size


def relation(a: Node, b: Node, tolerance: float) -> Relation:
    """How equal numbers stand in two arrays, as far as their fingerprints tell."""
    x, y = a.fingerprint, b.fingerprint
    allowed = ORDER * tolerance
    if x.size != y.size:
        return "unknown"
    if abs(x.order - y.order) <= allowed:
        return "same"
    first, second = long_axes(a), long_axes(b)
    if sorted(n for n, _ in first) != sorted(n for n, _ in second):
        return "unknown"
    if same_axes(first, second, allowed):
        # Each axis by itself is the same; that the whole is not means that they are mixed otherwise.
        return "reordered"
    left = list(second)
    for axis in first:
        partner = next((one for one in left if same_axes([axis], [one], allowed)), None)
        if partner is None:
            return "reordered"
        left.remove(partner)
    return "swapped" if [n for n, _ in first] == [n for n, _ in second] else "transposed"


def long_axes(node: Node) -> list[tuple[int, float]]:
    """Of each axis longer than one, its length and what is remembered of the numbers along it."""
    axes = node.fingerprint.axes[: len(node.shape)]  # a complex array has one more
    return [(length, along) for length, along in zip(node.shape, axes, strict=True) if length > 1]


def same_axes(first: Sequence[tuple[int, float]], second: Sequence[tuple[int, float]], allowed: float) -> bool:
    """Whether axes have the same lengths and the same numbers along them."""
    return all(n == m and abs(s - t) <= allowed for (n, s), (m, t) in zip(first, second, strict=True))
