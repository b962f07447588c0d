"""Nested dicts of arrays and flat dicts of names: {"h": {"0": {"weight": w}}} and {"h.0.weight": w}."""

from collections.abc import Mapping
from typing import Any

import jax

Tree = dict[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
    """{"h": {"0": {"weight": w}}} -> {"h.0.weight": w}, in the order of the names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
