"""The bridge between a torch state_dict and a JAX tree: a table of rules, applied strictly both ways.

Every torch name matches exactly one rule, every JAX leaf is fed by exactly one torch array, and shapes and dtypes are
equal after the rule's transpose; anything else is a UserError that names the key. Nothing is cast, padded or skipped.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jax_impl.tree import Tree, flatten, unflatten
from twinstep.errors import UserError


@dataclass(frozen=True)
class Rule:
    r"""How torch arrays whose whole name matches `torch` become JAX leaves.

    torch: regular expression, matched against the whole name ("conv1.weight").
    jax: the leaf's name, keys joined by dots, with \1, \2 for the expression's groups; None: the array has no JAX leaf.
    axes: permutation of the torch axes that gives the JAX axes, as for numpy.transpose; () keeps them. A torch Linear
    weight (out, in) becomes a Flax kernel (in, out) by (1, 0), a torch Conv2d weight (out, in, h, w) becomes
    (h, w, in, out) by (2, 3, 1, 0).
    """

    torch: str
    jax: str | None
    axes: tuple[int, ...] = ()


class Target(NamedTuple):
    """Where one torch array goes."""

    jax: str
    axes: tuple[int, ...]


def map_names(rules: Sequence[Rule], torch_names: Iterable[str], jax_names: Iterable[str]) -> dict[str, Target]:
    """torch name -> JAX name and axes, for every torch name that has a JAX leaf.

    Raises UserError for a name that matches no or several rules, a rule that matches nothing, or a JAX leaf that is
    missing, fed twice or never.
    """
    torch_names, wanted = list(torch_names), set(jax_names)
    targets: dict[str, Target] = {}
    fed: dict[str, str] = {}
    for name in torch_names:
        matches = [(rule, match) for rule in rules if (match := re.fullmatch(rule.torch, name))]
        if len(matches) != 1:
            raise UserError(f"torch's {name!r} matches {len(matches)} rules of the name map; it must match one")
        rule, match = matches[0]
        if rule.jax is None:
            continue
        leaf = match.expand(rule.jax)
        if leaf not in wanted:
            raise UserError(
                f"torch's {name!r} goes to the JAX leaf {leaf!r}, which does not exist{closest(leaf, wanted)}"
            )
        if leaf in fed:
            raise UserError(f"the JAX leaf {leaf!r} is fed by both {fed[leaf]!r} and {name!r}; mend the name map")
        fed[leaf] = name
        targets[name] = Target(leaf, rule.axes)
    for leaf in sorted(wanted - set(fed)):
        raise UserError(f"the JAX leaf {leaf!r} is fed by no torch array{closest(leaf, set(torch_names))}")
    return targets


def closest(name: str, names: set[str]) -> str:
    """A hint at the end of a message: up to three known names that end like this one."""
    last = name.rsplit(".", 1)[-1]
    known = sorted(n for n in names if n.rsplit(".", 1)[-1] == last) or sorted(names)
    return f"; there is {', '.join(known[:3])}{' ...' if len(known) > 3 else ''}" if known else ""


def carry_to_jax(targets: Mapping[str, Target], arrays: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict:
    """torch arrays by name -> JAX leaves by name. `like` holds a shape and a dtype for every JAX leaf.

    Raises UserError naming the key for a missing array, a wrong shape or a wrong dtype.
    """
    leaves = {}
    for name, (leaf, axes) in targets.items():
        if name not in arrays:
            raise UserError(f"the array {name!r} is missing{closest(name, set(arrays))}")
        array = transpose(name, np.asarray(arrays[name]), axes)
        check_leaf(name, array.shape, array.dtype, like[leaf])
        leaves[leaf] = array
    return leaves


def carry(arrays: Mapping[str, np.ndarray], params: Tree, rules: Sequence[Rule]) -> Tree:
    """torch arrays by name as the port's parameters: the structure of `params`, nested dicts with string keys.

    Raises UserError naming the key for a name without a rule, a leaf that nothing feeds, a wrong shape or dtype.
    """
    like = flatten(params)
    return unflatten(carry_to_jax(map_names(rules, arrays, like), arrays, like))


def carry_to_torch(targets: Mapping[str, Target], leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `carry_to_jax`; raises UserError for a missing leaf."""
    arrays = {}
    for name, (leaf, axes) in targets.items():
        if leaf not in leaves:
            raise UserError(f"the JAX leaf {leaf!r} is missing{closest(leaf, set(leaves))}")
        arrays[name] = transpose(leaf, np.asarray(leaves[leaf]), tuple(np.argsort(axes)))
    return arrays


def transpose(name: str, array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """`array` with its axes permuted, contiguous. Raises UserError if the permutation does not fit."""
    if not axes:
        return array
    if sorted(axes) != list(range(array.ndim)):
        raise UserError(f"{name!r} has shape {array.shape}; the name map's axes {axes} do not permute it")
    return np.ascontiguousarray(array.transpose(axes))


def check_leaf(name: str, shape: tuple[int, ...], dtype: Any, like: Any) -> None:
    """Raises UserError unless shape and dtype are those of `like`."""
    if tuple(shape) != tuple(like.shape):
        hint = "; its transpose would fit: give the rule axes" if sorted(shape) == sorted(like.shape) else ""
        raise UserError(f"{name!r} has shape {tuple(shape)}, the model expects {tuple(like.shape)}{hint}")
    if str(dtype) != str(like.dtype):
        raise UserError(f"{name!r} has dtype {dtype}, the model expects {like.dtype}; convert the file first")
