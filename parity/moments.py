"""Where an optimizer keeps its moments, found by what an update does to them.

A state may be laid out in any way: in optax's tuples, in dicts of one's own, with matrices stacked or transposed.
What it means is the moments of each parameter: after one update from zero, the first is a multiple of the gradient,
and the second of its square.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np

LIKE = 0.99  # cosine of a moment and what it is a multiple of; in bfloat16 it is 0.9999, for another gradient near 0


class Place(NamedTuple):
    """Where one moment lies: in a leaf of the state, or in a row of it, as it is or transposed."""

    name: str  # "kind/parameter"
    leaf: int
    row: int | None
    transposed: bool

    def of(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The moment, a view of its leaf."""
        x = leaves[self.leaf]
        x = x if self.row is None else x[self.row]
        return x.T if self.transposed else x


class Layout(NamedTuple):
    """What the leaves of a state are, each by its number. Those that are nowhere here stay as they begin."""

    probes: dict[int, str]  # what the check itself keeps there
    moments: list[Place]
    counts: dict[int, str]  # "count/group", or "" in no group's own state: steps taken
    unknown: dict[int, str]  # the paths of those that change and could not be told


def find_layout(
    before: Any, after: Sequence[Any], gradients: Mapping[str, np.ndarray], probes: dict[int, str]
) -> Layout:
    """before: an optimizer's state at the start; after: what each of several updates alone makes of it.

    gradients: random numbers by parameter, with a leading axis of the updates. The parameters must be zeros, so that a
    decay adds nothing. probes: leaves that are not the optimizer's.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(before)]
    old = [np.asarray(x) for x in jax.tree.leaves(before)]
    new = [np.stack(leaves) for leaves in zip(*map(jax.tree.leaves, after), strict=True)]
    places, counts, unknown = list[Place](), dict[int, str](), dict[int, str]()
    for number, (path, x, y) in enumerate(zip(paths, old, new, strict=True)):
        if number in probes or (y == x).all():
            continue
        if x.ndim > 0:
            found = list(find_places(number, y, gradients))
            places += found
            if sum(gradients[place.name[2:]][0].size for place in found) != x.size:
                unknown[number] = jax.tree_util.keystr(path)
        elif np.issubdtype(x.dtype, np.integer) or (y == x + 1).all():
            counts[number] = f"count/{group_of(path)}" if group_of(path) else ""
        else:
            unknown[number] = jax.tree_util.keystr(path)
    often = {name for name, times in Counter(place.name for place in places).items() if times > 1}
    unknown |= {place.leaf: jax.tree_util.keystr(paths[place.leaf]) for place in places if place.name in often}
    return Layout(probes, with_kinds([place for place in places if place.leaf not in unknown]), counts, unknown)


def find_places(number: int, leaf: np.ndarray, gradients: Mapping[str, np.ndarray]) -> Iterator[Place]:
    """The moments in one leaf, after each of the updates: the leaf itself, or its rows. Their kinds are "1" and "2"."""
    whole = {shape for g in gradients.values() for shape in (g.shape[1:], g.shape[:0:-1])}
    rows = [(None, leaf)] if leaf.shape[1:] in whole else [(row, leaf[:, row]) for row in range(leaf.shape[1])]
    for row, x in rows:
        for name, gradient in gradients.items():
            for transposed in (False, True)[: x.ndim - 1]:
                y = x.swapaxes(-1, -2) if transposed else x
                if y.shape == gradient.shape and (kind := kind_of(y, gradient)):
                    yield Place(f"{kind}/{name}", number, row, transposed)


def kind_of(x: np.ndarray, gradient: np.ndarray) -> str:
    """ "1" for a multiple of the gradient, "2" for one of its square, "" for neither."""
    x, gradient = x.astype(np.float64), gradient.astype(np.float64)
    for kind, like in (("1", gradient), ("2", gradient**2)):
        norms = np.sqrt(np.sum(x**2) * np.sum(like**2))
        if norms > 0 and np.sum(x * like) > LIKE * norms:
            return kind
    return ""


def with_kinds(places: Sequence[Place]) -> list[Place]:
    """AdamW's two moments under their names; the one moment of a parameter that has no second is Muon's momentum."""
    names = {place.name for place in places}

    def kind(place: Place) -> str:
        number, _, parameter = place.name.partition("/")
        if number == "2":
            return f"second_moment/{parameter}"
        return f"first_moment/{parameter}" if f"2/{parameter}" in names else f"momentum/{parameter}"

    return [place._replace(name=kind(place)) for place in places]


def group_of(path: Sequence[Any]) -> str:
    """The group in whose state a leaf of `optax.multi_transform` lies; "" outside it."""
    for above, entry in pairwise(path):
        if getattr(above, "name", "") == "inner_states":
            return str(entry.key)
    return ""
