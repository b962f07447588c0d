"""Which torch arrays feed which leaf of the port, by value or by rules, and the stage `weights`."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from parity.broken import described
from parity.budget import Tolerance
from parity.entries import GIVEN, Key
from parity.ledger import Ledger
from parity.pair.inputs import is_floating, wide
from parity.pair.trees import read_tree
from parity.rule_sources import source_of
from parity.rules import Rule, map_names
from parity.sources import Source, find_sources
from twinstep.errors import UserError

ADDED = Tolerance("relative", 2.0**-22, "a sum that the port's owner made in float32")

Convert = Callable[[dict[str, Any]], Any]


class State(NamedTuple):
    """torch's parameters and buffers."""

    arrays: dict[str, np.ndarray]  # each once, under the first of its names; counters are left out
    others: dict[str, np.ndarray]  # counters, and what `state_dict()` alone has
    first: dict[str, str]  # name in `state_dict()` -> the name of the same array above

    @property
    def state_dict(self) -> dict[str, np.ndarray]:
        """By all the names of `state_dict()`; a tied array is the same object under each."""
        held = {**self.arrays, **self.others}
        return {name: held[first] for name, first in self.first.items()}


@dataclass
class Carried:
    """How the port's leaves are made of torch's arrays."""

    sources: dict[str, Source]
    shapes: dict[str, tuple[int, ...]]  # of torch's arrays
    missing: dict[str, str] = field(default_factory=dict)  # leaf -> the nearest thing, in words
    doubts: list[str] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)  # leaf -> what a conversion adds to its numbers

    def leaf(self, name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """One leaf from torch's arrays."""
        carried = self.sources[name].carry(arrays)
        return carried + self.constants[name].astype(carried.dtype) if name in self.constants else carried

    def gradients(self, arrays: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Gradients by torch's arrays as gradients by leaves, such that `back` gives them again.

        What a conversion adds has none. Of an array that feeds several leaves each gets an equal part; a sum of arrays,
        whose gradients are equal, has theirs.
        """
        found = replace(self, constants={}).leaves(arrays, like)
        alone = self.copied()
        if not (rest := {leaf: s for leaf, s in self.sources.items() if not alone >= set(s.names)}):
            return found
        places = replace(self, sources=rest).back({leaf: np.ones(source.shape) for leaf, source in rest.items()})
        for leaf, source in rest.items():
            parts = {name: arrays[name] / np.maximum(places[name], 1) for name in source.names}
            terms = source.carry({name: np.ones(self.shapes[name]) for name in source.names})
            found[leaf] = source.carry(parts) / terms
        return found

    def leaves(self, arrays: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """torch's arrays as the port's leaves; one without a source is as in `like`."""
        return {name: self.leaf(name, arrays) if name in self.sources else like[name] for name in like}

    def back(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Gradients by leaves as gradients by torch's arrays: what a tied array feeds adds up."""
        found: dict[str, np.ndarray] = {}
        for leaf, source in self.sources.items():
            if leaf in leaves:
                for name, part in source.pull(leaves[leaf], self.shapes).items():
                    found[name] = found[name] + part if name in found else part
        return found

    def copied(self) -> set[str]:
        """The torch arrays whose numbers are each in one place of one leaf: an update of it is one of theirs."""
        fed = Counter(name for source in self.sources.values() for name in source.names)
        once = {name for name, times in fed.items() if times == 1}
        summed = {name for source in self.sources.values() if not source.copies for name in source.names}
        return once - summed


def by_rules(rules: Sequence[Rule], state: State, leaves: Mapping) -> Carried:
    """As the rules say, from all names of `state_dict()`. Raises UserError for names that do not match up.

    A tied array has its gradient under the first of its names.
    """
    arrays, first = state.state_dict, state.first
    shapes = shapes_of(arrays)
    wanted = shapes_of(leaves)
    fed = map_names(rules, arrays, leaves)
    sources = {leaf: source_of(leaf, feeds, shapes, wanted) for leaf, feeds in fed.items()}
    return Carried({leaf: source.renamed(first) for leaf, source in sources.items()}, shapes)


def by_value(arrays: Mapping[str, np.ndarray], leaves: Mapping[str, np.ndarray]) -> Carried:
    """By the numbers themselves."""
    found = find_sources(arrays, leaves)
    return Carried(found.sources, shapes_of(arrays), found.missing, found.doubts)


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shape of each."""
    return {name: x.shape for name, x in arrays.items()}


def by_conversion(convert: Convert, state: State) -> Carried:
    """By what `convert` does with other numbers, all different: equal arrays (norms of ones) are told apart.

    What it adds to a leaf (Haiku's one for the forget gate) is found with zeros, and taken off before. The numbers are
    integers, whose sums are exact. Tied arrays stay equal. Raises UserError for a `convert` that raises.
    """
    random = np.random.default_rng(0)
    moved: dict[str, np.ndarray] = {}
    for name, x in state.state_dict.items():
        if is_floating(x) and state.first[name] not in moved:
            most = 2**22 if jnp.finfo(x.dtype).bits > 16 else 2**7  # that the type holds exactly
            moved[state.first[name]] = random.integers(-most, most, x.shape).astype(x.dtype)
    given = {name: moved.get(state.first[name], x) for name, x in state.state_dict.items()}
    zeros = {name: np.zeros_like(x) if is_floating(x) else x for name, x in given.items()}
    leaves, added = (converted(convert, numbers).arrays for numbers in (given, zeros))
    others = {name: given[name] for name in state.arrays if name in given}
    found = by_value({**state.arrays, **others}, {leaf: x - added[leaf] for leaf, x in leaves.items()})
    constants = {leaf: added[leaf] for leaf in found.sources if added[leaf].any()}
    return replace(found, constants=constants)


def converted(convert: Convert, state: Mapping[str, Any]) -> Any:
    """The parameters that `convert` makes, read as a tree. Raises UserError if it raises."""
    try:
        params = convert(dict(state))
    except Exception as error:
        raise UserError(f"convert raises {described(error)}") from error
    return read_tree(params, "what convert returns")


def compare_weights(ledger: Ledger, carried: Carried, arrays: Mapping[str, np.ndarray], leaves: Mapping) -> None:
    """Every leaf beside what feeds it: shape and every value. The leaf's type may be wider or narrower."""
    for leaf, theirs in leaves.items():
        key = Key("weights", leaf, GIVEN)
        if leaf in carried.missing:
            ledger.refuse(key, 0, f"no torch array holds its numbers; {carried.missing[leaf]}")
        else:
            ours = carried.leaf(leaf, {name: wide(arrays[name]) for name in carried.sources[leaf].names})
            added = leaf in carried.constants or not carried.sources[leaf].copies
            ledger.enter(key, 0, ours.astype(theirs.dtype), theirs, tolerance=ADDED if added else None)
