"""The bridge between a torch state_dict and a JAX tree: a table of rules, applied strictly both ways.

Every torch name matches exactly one rule, every JAX leaf is fed as its rule says, and shapes and dtypes are then equal;
anything else is a UserError that names the key. Nothing is cast, padded or skipped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_impl.tree import Tree, flatten, unflatten
from parity.rule_sources import listed, source_of
from parity.rules import Feed, Rule, closest, map_names
from twinstep.errors import UserError


def carry(arrays: Mapping[str, np.ndarray], params: Tree, rules: Sequence[Rule]) -> Tree:
    """torch arrays by name as the port's parameters: the structure of `params`, nested dicts with string keys.

    Raises UserError naming the key for a name without a rule, a leaf that nothing feeds, a wrong shape or dtype.
    """
    like = flatten(params)
    return unflatten(carry_to_jax(map_names(rules, arrays, like), arrays, like))


def carry_to_jax(feeds: Mapping[str, Sequence[Feed]], arrays: Mapping[str, Any], like: Mapping[str, Any]) -> dict:
    """torch arrays by name -> JAX leaves by name. `like` holds a shape and a dtype for every JAX leaf.

    Raises UserError naming the key for a missing array, a wrong shape or a wrong dtype.
    """
    numbers = {name: np.asarray(array) for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in numbers.items()}
    wanted = {name: tuple(leaf.shape) for name, leaf in like.items()}
    leaves = {}
    for leaf, fed in feeds.items():
        names = [feed.torch for feed in fed]
        for name in names:
            if name not in numbers:
                raise UserError(f"the array {name!r} is missing{closest(name, set(numbers))}")
        array = source_of(leaf, fed, shapes, wanted).carry(numbers)
        check_leaf(listed(names), array.shape, array.dtype, like[leaf])
        leaves[leaf] = array
    return leaves


def check_leaf(name: str, shape: tuple[int, ...], dtype: Any, like: Any) -> None:
    """Raises UserError unless shape and dtype are those of `like`."""
    if tuple(shape) != tuple(like.shape):
        hint = "; its transpose would fit: give the rule axes" if sorted(shape) == sorted(like.shape) else ""
        raise UserError(f"{name!r} has shape {tuple(shape)}, the model expects {tuple(like.shape)}{hint}")
    if str(dtype) != str(like.dtype):
        raise UserError(f"{name!r} has dtype {dtype}, the model expects {like.dtype}; convert the file first")
