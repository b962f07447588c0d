"""Equal arrays, such as norms of ones: which of them feeds which leaf is told by their gradients."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from parity.budget import relative
from parity.pair.carrying import Carried
from parity.sources import Source

SAME = 1e-4  # relative distance of two gradients of one array

Named = Mapping[str, np.ndarray]


def told_apart(carried: Carried, arrays: Named, ours: Named, theirs: Named) -> Carried:
    """Vectors that hold equal numbers exchanged until their gradients agree, where an exchange makes all of them agree.

    arrays: torch's. ours: gradients by torch's arrays. theirs: by leaves.
    """
    back = carried.back(theirs)
    new: dict[str, str] = {}
    for group in equal_vectors(carried, arrays, [name for name in ours if name in back]):
        far = np.array([[min(1.0, relative(ours[name], back[other])) for other in group] for name in group])
        if (np.diag(far) <= SAME).all():
            continue
        rows, columns = linear_sum_assignment(far)
        if (far[rows, columns] <= SAME).all():
            new |= {group[column]: group[row] for row, column in zip(rows, columns, strict=True)}
    if not new:
        return carried
    exchanged = sorted(name for name in new if new[name] != name)
    doubt = f"Told apart by their gradients, since they hold equal numbers: {', '.join(exchanged)}."
    sources = {leaf: renamed(source, new) for leaf, source in carried.sources.items()}
    return replace(carried, sources=sources, doubts=[*carried.doubts, doubt])


def equal_vectors(carried: Carried, arrays: Named, names: list[str]) -> list[list[str]]:
    """The names of vectors that hold equal numbers and feed one leaf each, without being added to another."""
    groups: dict[tuple[int, bytes], list[str]] = {}
    copied = carried.copied()
    for name in names:
        if arrays[name].ndim == 1 and name in copied:
            groups.setdefault((arrays[name].size, arrays[name].tobytes()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def renamed(source: Source, new: Mapping[str, str]) -> Source:
    """The source with other arrays in the same places."""
    pieces = tuple(replace(piece, name=new.get(piece.name, piece.name)) for piece in source.pieces)
    return replace(source, pieces=pieces)
