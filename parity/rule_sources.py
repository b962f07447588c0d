"""How a leaf is made of torch's arrays, as a rule says: a `Source`, by which gradients travel too."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from parity.rules import Feed, Rule
from parity.sources import Piece, Source
from parity.sources.piece import Index
from twinstep.errors import UserError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


class Part(NamedTuple):
    """A window of one torch array, and its shapes before and after it is laid out anew."""

    name: str
    cut: Shape
    take: Index
    before: Shape
    axes: tuple[int, ...]
    after: Shape


def source_of(leaf: str, feeds: Sequence[Feed], arrays: Shapes, leaves: Shapes) -> Source:
    """The source of a leaf that these feed, in order. arrays, leaves: the shapes of all by name.

    Raises UserError for shapes that a rule's axes, split, stack or reshape do not fit. What a plain rule gives may have
    another shape than the leaf.
    """
    rule = feeds[0].rule
    layers: dict[tuple[int, ...], list[Part]] = {}
    for feed in feeds:
        layers.setdefault(feed.layer, []).append(part_of(feed, arrays, leaves))
    joined = [side_by_side(leaf, rule, parts) for parts in layers.values()]
    shape, names = joined[0][0], [feed.torch for feed in feeds]
    for other, _ in joined[1:]:
        if other != shape:
            raise UserError(f"the JAX leaf {leaf!r} stacks arrays of shapes {shape} and {other}: {listed(names)}")
    if rule.stack is None:
        source = Source(shape, tuple(joined[0][1]))
    else:
        source = stacked(leaf, rule, joined, names, leaves[leaf])
    if not rule.is_plain and source.shape != leaves[leaf]:
        raise UserError(
            f"the JAX leaf {leaf!r} has shape {leaves[leaf]}, and its rule makes {source.shape} of {listed(names)}"
        )
    return source


def part_of(feed: Feed, arrays: Shapes, leaves: Shapes) -> Part:
    """What one array, or a part of it, becomes."""
    rule, shape = feed.rule, arrays[feed.torch]
    cut, take = shape, whole(shape)
    before = shape
    if len(feed.leaves) > 1:
        assert rule.split is not None
        lengths = lengths_of_parts(feed, rule.split, shape, leaves)
        before = replaced(shape, rule.split, lengths[feed.part])
        cut, take = window(shape, rule.split, lengths, feed.part, rule.heads)
    axes = rule.axes or tuple(range(len(shape)))
    if sorted(axes) != list(range(len(shape))):
        raise UserError(f"{feed.torch!r} has shape {shape}; the rule's axes {axes} do not permute it")
    after = tuple(before[axis] for axis in axes)
    return Part(feed.torch, cut, take, before, axes, reshaped(feed.torch, after, rule.reshape))


def lengths_of_parts(feed: Feed, axis: int, shape: Shape, leaves: Shapes) -> list[int]:
    """How long the parts of a fused array are on its axis, from the sizes of the leaves that hold them."""
    check_axis(feed.torch, shape, axis)
    rule, lengths = feed.rule, []
    for leaf in feed.leaves:
        size = math.prod(leaves[leaf])
        if rule.stack is not None:
            check_axis(leaf, leaves[leaf], rule.stack)
            size //= leaves[leaf][rule.stack]
        lengths.append(size * shape[axis] / max(1, math.prod(shape)))
    fit = all(length % rule.heads == 0 for length in lengths) and sum(lengths) == shape[axis]
    if not fit:
        sizes = ", ".join(f"{leaf} {leaves[leaf]}" for leaf in feed.leaves)
        raise UserError(
            f"{feed.torch!r} has shape {shape}, which does not split on axis {axis}"
            f"{f' in {rule.heads} heads' if rule.heads > 1 else ''} into {sizes}"
        )
    return [int(length) for length in lengths]


def side_by_side(leaf: str, rule: Rule, parts: list[Part]) -> tuple[Shape, list[Piece]]:
    """The shape that the parts have together, and where each lies in it."""
    if len(rule.expressions) == 1:
        (part,) = parts
        return part.after, [piece(part, part.after, whole(part.after))]
    assert rule.split is not None
    if len(parts) != len(rule.expressions):
        raise UserError(
            f"the JAX leaf {leaf!r} is made of {len(rule.expressions)} arrays side by side, and its rule finds "
            f"{len(parts)}: {listed([part.name for part in parts])}"
        )
    first = parts[0].after
    for part in parts:
        check_axis(part.name, part.after, rule.split)
        if replaced(part.after, rule.split, 1) != replaced(first, rule.split, 1) or part.after[rule.split] % rule.heads:
            shapes = ", ".join(f"{p.name} {p.after}" for p in parts)
            raise UserError(f"the JAX leaf {leaf!r} cannot hold these side by side on axis {rule.split}: {shapes}")
    lengths = [part.after[rule.split] for part in parts]
    shape = replaced(first, rule.split, sum(lengths))
    windows = [window(shape, rule.split, lengths, number, rule.heads) for number in range(len(parts))]
    return shape, [piece(part, *place) for part, place in zip(parts, windows, strict=True)]


def stacked(leaf: str, rule: Rule, layers: list[tuple[Shape, list[Piece]]], names: list[str], wanted: Shape) -> Source:
    """The layers on an axis of their own."""
    axis, shape = rule.stack or 0, layers[0][0]
    check_axis(leaf, (*shape, len(layers)), axis)
    check_axis(leaf, wanted, axis)
    if wanted[axis] != len(layers):
        raise UserError(
            f"the JAX leaf {leaf!r} has {wanted[axis]} layers on axis {axis}, and its rule finds {len(layers)}: "
            f"{listed(names)}"
        )
    pieces = []
    for number, (_, parts) in enumerate(layers):
        for part in parts:
            has_heads = len(part.fit) > len(shape)  # an axis more, before that on which the parts lie
            at = axis + 1 if has_heads and axis > (rule.split or 0) else axis
            fit = (*part.fit[:at], len(layers), *part.fit[at:])
            put = (*part.put[:at], number, *part.put[at:])
            pieces.append(Piece(part.name, part.cut, part.take, part.split, part.axes, fit, put))
    return Source((*shape[:axis], len(layers), *shape[axis:]), tuple(pieces))


def piece(part: Part, fit: Shape, put: Index) -> Piece:
    """A part in its place of the leaf."""
    return Piece(part.name, part.cut, part.take, part.before, part.axes, fit, put)


def window(shape: Shape, axis: int, lengths: list[int], number: int, heads: int) -> tuple[Shape, Index]:
    """The shape, with an axis of heads where there are several, and the index of one of the parts side by side."""
    start, length = sum(lengths[:number]) // heads, lengths[number] // heads
    if heads > 1:
        shape, axis = (*shape[:axis], heads, shape[axis] // heads, *shape[axis + 1 :]), axis + 1
    index = list(whole(shape))
    index[axis] = slice(start, start + length)
    return shape, tuple(index)


def reshaped(name: str, shape: Shape, wanted: Shape) -> Shape:
    """The wanted shape with its -1 filled in; () keeps the shape."""
    if not wanted:
        return shape
    known = math.prod(length for length in wanted if length != -1)
    filled = tuple(math.prod(shape) // known if length == -1 else length for length in wanted) if known else wanted
    if wanted.count(-1) > 1 or math.prod(filled) != math.prod(shape):
        raise UserError(f"{name!r} has shape {shape} after its rule's axes, which does not reshape to {wanted}")
    return filled


def check_axis(name: str, shape: Shape, axis: int) -> None:
    """Raises UserError unless the shape has this axis, counted from 0."""
    if not 0 <= axis < len(shape):
        raise UserError(f"{name!r} has {len(shape)} axes, and its rule names axis {axis}; count them from 0")


def whole(shape: Shape) -> Index:
    """The index of everything."""
    return (slice(None),) * len(shape)


def replaced(shape: Shape, axis: int, length: int) -> Shape:
    """The shape with another length on this axis."""
    return (*shape[:axis], length, *shape[axis + 1 :])


def listed(names: Sequence[str]) -> str:
    """Up to four names."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
