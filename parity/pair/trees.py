"""Any pytree of arrays by name, and back: nested dicts, lists, dataclasses, Equinox modules, NNX states, variables."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from parity.capture import is_tensor, to_numpy
from twinstep.errors import UserError

VALUES = ("value", "raw_value")  # the attribute of an NNX variable that holds its array


class Tree(NamedTuple):
    """A tree's arrays by name, and a tree like it around other arrays."""

    arrays: dict[str, np.ndarray]
    build: Callable[[Mapping[str, Any]], Any]


def read_tree(tree: Any, what: str) -> Tree:
    """The arrays of a pytree, by their paths joined by dots; leaves that are no arrays stay as they are.

    Random keys are such leaves, too. what: the argument's name. Raises UserError where there is no array at all.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)
    names: list[str | None] = []
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in paths:
        if not is_array(leaf):
            names.append(None)
            continue
        name = name_of(path, leaf)
        if name in arrays:
            raise UserError(f"{what} has two leaves of the name {name!r}; rename one of their keys")
        names.append(name)
        arrays[name] = to_numpy(leaf) if is_tensor(leaf) else np.asarray(leaf)
    if not arrays:
        raise UserError(f"{what} holds no array; pass the port's parameters, a pytree of arrays")
    leaves = [leaf for _, leaf in paths]

    def build(values: Mapping[str, Any]) -> Any:
        new = [leaf if name is None else values[name] for name, leaf in zip(names, leaves, strict=True)]
        return jax.tree_util.tree_unflatten(structure, new)

    return Tree(arrays, build)


def is_variable(leaf: Any) -> bool:
    """A framework's variable that JAX takes for a leaf, such as Keras'."""
    return hasattr(leaf, "numpy") and hasattr(leaf, "assign")


def is_array(leaf: Any) -> bool:
    """Whether NumPy can hold it as numbers."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return False
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) or is_tensor(leaf) or is_variable(leaf)


def name_of(path: tuple[Any, ...], leaf: Any) -> str:
    """The path's keys joined by dots; a variable's own path where it has one."""
    if is_variable(leaf) and getattr(leaf, "path", None):
        return str(leaf.path).replace("/", ".")
    keys = [key_name(key) for key in path]
    if len(keys) > 1 and keys[-1] in VALUES:
        keys.pop()
    return ".".join(keys).replace("/", ".")


def key_name(key: Any) -> str:
    """One key of a path: of a dict, an attribute, or a place in a list."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
