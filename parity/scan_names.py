"""Activations of a scan over layers, whose names hold the iteration, under the names of a model without the scan."""

import re
from collections.abc import Iterable, Mapping
from typing import Any


def by_layer(known: Iterable[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """`found` with "h.0.attn[1]", "h.attn[1]" and "attn[1]" renamed to "h.1.attn" where that alone is among `known`.

    Micro-steps and further calls keep what their names end in. What has no such name stays as it is; of two that lead
    to one name, "h.0[1]" and "h.1[0]", the later iteration has it: the other is a second output of the scanned module.
    """
    known = set(known)
    new_names: dict[str, str] = {}
    for name in sorted(found, key=iteration):
        layers = {name} if name in known else layers_of(name, known)
        new = layers.pop() if len(layers) == 1 else name
        if new == name or new not in found:
            new_names[new] = name
    old_names = {name: new for new, name in new_names.items()}
    return {old_names.get(name, name): value for name, value in found.items()}


def iteration(name: str) -> int:
    """The number of a scan's iteration within a name; 0 where there is none."""
    match = re.search(r"\[(\d+)\]", name)
    return int(match[1]) if match else 0


def layers_of(name: str, known: set[str]) -> set[str]:
    """The known names that "before[number]after" can stand for."""
    match = re.fullmatch(r"([^\[ ]*)\[(\d+)\]([^\[ ]*)( .*)?", name)
    if match is None:
        return set()
    path, number, end = match[1] + match[3], int(match[2]), match[4] or ""
    parts = path.split(".")
    layers = set()
    for at, part in enumerate(parts):  # the scanned module is called by the name of its first layer
        if part.isdigit():
            layers.add(".".join([*parts[:at], str(int(part) + number), *parts[at + 1 :]]) + end)
    for layer in known:  # or by none
        plain, space, rest = layer.partition(" ")
        others = plain.split(".")
        for at, part in enumerate(others):
            without = ".".join([*others[:at], *others[at + 1 :]])
            if part == str(number) and space + rest == end and f".{without}".endswith(f".{path}"):
                layers.add(layer)
    return layers & known
