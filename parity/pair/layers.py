"""Which of torch's modules belongs to which tag of the port, and in which layout."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from parity.pair.models import OUTPUT
from parity.rules import Rule
from parity.sources import Source
from twinstep.errors import UserError


class Layer(NamedTuple):
    """One tag, and the transpose from torch's activation; None: what the arrays themselves show."""

    tag: str
    axes: tuple[int, ...] | None = None


def by_rules(rules: Sequence[Rule], ours: Iterable[str], tags: Iterable[str]) -> dict[str, Layer]:
    """torch's module -> its tag, for those whose tag is there. Raises UserError if rules are given and none is."""
    tags, found = set(tags), {}
    for name in ours:
        layers = [layer for layer in tags_of(rules, name) if layer.tag in tags]
        if layers:
            found[name] = layers[0]
    if rules and not found:
        some = ", ".join(sorted(tags)[:3]) or "none at all"
        raise UserError(
            f"no layer of torch ({', '.join(list(ours)[:3])}, ...) has its tag in JAX ({some}, ...); "
            "say in layers= which is which, or leave it out"
        )
    return found


def tags_of(rules: Sequence[Rule], name: str) -> list[Layer]:
    """The tags that the rules give to one of torch's modules, the first that matches first."""
    plain, *number = name.partition(" #")  # " #2": the layer's second call
    found = []
    for rule in rules:
        if not (isinstance(rule.torch, str) and isinstance(rule.jax, str | None) and rule.is_plain):
            raise UserError(
                f"layers= has a rule for {rule.torch!r} with stack, split or reshape; those are for weights="
            )
        if rule.jax and (match := re.fullmatch(rule.torch, plain)):
            found.append(Layer(match.expand(rule.jax) + "".join(number), rule.axes))
    return found


def by_name_or_weights(ours: Sequence[str], tags: Sequence[str], sources: Mapping[str, Source]) -> dict[str, Layer]:
    """By equal names, however they are spelled ("layers_0/norm" is "layers.0.norm"), or by whose weights they hold.

    A tag may be the end of the path to the weights, where it is the end of no other: "block.norm[1]" for the second of
    the weights in "layers.block.norm", as within Haiku's `layer_stack`.
    """
    spelled: dict[tuple[str, ...], list[str]] = {}
    for tag in tags:
        spelled.setdefault(words(tag), []).append(tag)
    holders = holders_of(sources)
    paths = {path for held in holders.values() for path in held}
    ends = {tag: [path for path in paths if f".{path}".endswith(f".{tag.partition(' #')[0]}")] for tag in tags}
    found: dict[str, Layer] = {}
    taken: set[str] = set()
    for name in ours:
        plain, *number = name.partition(" #")
        same = [name] if name in tags else spelled.get(words(name), [])
        held = [path + "".join(number) for path in holders.get(plain, ())]
        held = [path for path in held if path in tags] or [
            tag for tag in tags if ends[tag] == holders.get(plain) and tag.partition(" #")[1:] == tuple(number)
        ]
        if free := [tag for tag in [*same[:1], *held[:1]] if tag not in taken]:
            taken.add(free[0])
            found[name] = Layer(free[0])
    return found


def words(name: str) -> tuple[str, ...]:
    """A name without its punctuation: ("layers", "0", "norm")."""
    return tuple(word.lower() for word in re.split(r"[^A-Za-z0-9#]+", name) if word)


def holders_of(sources: Mapping[str, Source]) -> dict[str, list[str]]:
    """torch's module -> the parts of the port that hold its weights: "layers.norm[1]" for the second of a stack."""
    held: dict[str, list[str]] = {}
    for leaf, source in sources.items():
        part = leaf.rpartition(".")[0]
        for number, name in enumerate(source.names):
            module = name.rpartition(".")[0]
            tag = part if len(source.names) == 1 else f"{part}[{number}]"
            if part and module and tag not in held.setdefault(module, []):
                held[module].append(tag)
    return {module: tags for module, tags in held.items() if len(tags) == 1}


def is_output(name: str) -> bool:
    """Whether it is what the whole model returns."""
    return name == OUTPUT or name.startswith(f"{OUTPUT}.")


def in_layout(ours: np.ndarray, theirs: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """torch's activation in the port's layout: transposed, or with dimensions split or joined; else as it is."""
    if axes:
        return ours.transpose(axes)
    if ours.shape != theirs.shape and ours.size == theirs.size and same_but_for_splits(ours.shape, theirs.shape):
        return ours.reshape(theirs.shape)
    return ours


def same_but_for_splits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether one shape is the other with dimensions joined: (B, T, H, C) and (B, T, H C), or (B, 1) and (B,)."""

    def ends(shape: tuple[int, ...]) -> set[int]:
        return set(np.cumprod(shape).tolist())

    return ends(a) <= ends(b) or ends(b) <= ends(a)
