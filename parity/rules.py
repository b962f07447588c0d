"""Rules from torch's names to the port's, matched strictly both ways.

Every torch name matches exactly one rule and every JAX leaf is fed by exactly one; anything else is a UserError that
names the key.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from twinstep.errors import UserError


@dataclass(frozen=True)
class Rule:
    r"""How torch arrays whose whole name matches `torch` become JAX leaves.

    An array is cut into its parts (`split`), each is transposed (`axes`), then reshaped (`reshape`), and where a leaf
    holds several, they are joined (`split` again) and stacked (`stack`).

    torch: regular expression, matched against the whole name ("conv1.weight"). Several, a tuple, where one leaf holds
    several arrays side by side, in this order.
    jax: the leaf's name, keys joined by dots, with \1, \2 for the expression's groups. Several, a tuple, where one
    array holds several leaves side by side, in this order. None: the array has no JAX leaf.
    axes: permutation of the torch axes that gives the JAX axes, as for numpy.transpose; () keeps them. A torch Linear
    weight (out, in) becomes a Flax kernel (in, out) by (1, 0), a torch Conv2d weight (out, in, h, w) becomes
    (h, w, in, out) by (2, 3, 1, 0).
    stack: the axis of the leaf on which the arrays of several layers follow each other, in the order of the numbers
    that the expression's groups hold. A norm's weights of all layers become one leaf (L, D) by
    `Rule(r"layers\.(\d+)\.norm\.weight", "layers.norm", stack=0)`.
    split: the axis of the fused array on which its parts lie side by side: of torch's array as it is stored, or of the
    leaf before it is stacked. How long they are, the other side's shapes say. GPT-2's fused queries, keys and values
    (D, 3 D) become three kernels by
    `Rule(r"h\.(\d+)\.attn\.c_attn\.weight", (r"h.\1.q", r"h.\1.k", r"h.\1.v"), split=1)`.
    heads: how often the parts follow each other on that axis: 1, or the number of heads where each head has its own
    query, key and value beside each other.
    reshape: the shape after the transpose, -1 for one length that follows from the others. Queries (H C, D) become
    (D, H, C), with H 4 and C 8, by `Rule(r"q_proj\.weight", "q", axes=(1, 0), reshape=(-1, 4, 8))`.
    """

    torch: str | tuple[str, ...]
    jax: str | tuple[str, ...] | None
    axes: tuple[int, ...] = ()
    stack: int | None = None
    split: int | None = None
    heads: int = 1
    reshape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        several = [isinstance(names, tuple) for names in (self.torch, self.jax)]
        if all(several):
            raise UserError(f"the rule for {self.torch} has several names on both sides; write one for each pair")
        if any(several) and self.split is None:
            raise UserError(
                f"the rule for {self.torch!r} has several names on a side; say on which axis they lie: split="
            )
        if self.split is not None and not any(several):
            raise UserError(f"the rule for {self.torch!r} has split=; give it the names of the parts, a tuple")
        if self.heads != 1 and (self.split is None or self.heads < 1):
            raise UserError(f"the rule for {self.torch!r} has heads={self.heads}; it goes with split=, and is positive")

    @property
    def expressions(self) -> tuple[str, ...]:
        """Those of torch's names."""
        return (self.torch,) if isinstance(self.torch, str) else self.torch

    @property
    def leaves(self) -> tuple[str, ...]:
        """The names of the leaves, with their references to groups."""
        return () if self.jax is None else (self.jax,) if isinstance(self.jax, str) else self.jax

    @property
    def is_plain(self) -> bool:
        """Whether it is a name, and at most a transpose."""
        return self.stack is None and self.split is None and not self.reshape


class Feed(NamedTuple):
    """One torch array's part in one leaf."""

    torch: str
    rule: Rule
    part: int  # which of the rule's several names, on either side
    leaves: tuple[str, ...]  # of this array
    layer: tuple[int, ...]  # its place in a stack


def map_names(rules: Sequence[Rule], torch_names: Iterable[str], jax_names: Iterable[str]) -> dict[str, list[Feed]]:
    """JAX leaf -> what feeds it: one torch array, or several in the order in which the leaf holds them.

    Raises UserError for a name that matches no or several rules, or a JAX leaf that is missing, fed by several without
    a rule that says how, or never.
    """
    torch_names, wanted = list(torch_names), set(jax_names)
    fed: dict[str, list[Feed]] = {}
    for name in torch_names:
        matches = [
            (rule, part, match)
            for rule in rules
            for part, expression in enumerate(rule.expressions)
            if (match := re.fullmatch(expression, name))
        ]
        if len(matches) != 1:
            raise UserError(f"torch's {name!r} matches {len(matches)} rules of the name map; it must match one")
        rule, part, match = matches[0]
        leaves = tuple(match.expand(leaf) for leaf in rule.leaves)
        layer = tuple(int(group) for group in match.groups() if group and group.isdigit())
        for number, leaf in enumerate(leaves):
            if leaf not in wanted:
                raise UserError(
                    f"torch's {name!r} goes to the JAX leaf {leaf!r}, which does not exist{closest(leaf, wanted)}"
                )
            feed = Feed(name, rule, max(part, number), leaves, layer if rule.stack is not None else ())
            for other in fed.setdefault(leaf, []):
                check_apart(leaf, other, feed)
            fed[leaf].append(feed)
    for leaf in sorted(wanted - set(fed)):
        raise UserError(f"the JAX leaf {leaf!r} is fed by no torch array{closest(leaf, set(torch_names))}")
    return {leaf: sorted(feeds, key=lambda feed: (feed.layer, feed.part)) for leaf, feeds in fed.items()}


def check_apart(leaf: str, one: Feed, other: Feed) -> None:
    """Raises UserError unless two arrays have different places in their leaf."""
    if one.rule != other.rule:
        cure = "by two rules; one rule has to say how they share it"
    elif one.layer == other.layer and (len(one.rule.expressions) == 1 or one.part == other.part):
        cure = "mend the name map, or say in the rule how they share it: stack= or split="
        if one.rule.stack is not None:
            cure = "at one place of the stack; put the layer's number into a group, (\\d+)"
    else:
        return
    raise UserError(f"the JAX leaf {leaf!r} is fed by both {one.torch!r} and {other.torch!r}: {cure}")


def closest(name: str, names: set[str]) -> str:
    """A hint at the end of a message: up to three known names that end like this one."""
    last = name.rsplit(".", 1)[-1]
    known = sorted(n for n in names if n.rsplit(".", 1)[-1] == last) or sorted(names)
    return f"; there is {', '.join(known[:3])}{' ...' if len(known) > 3 else ''}" if known else ""
