"""A source in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parity.sources.piece import Piece, Source


def described(source: Source) -> str:
    """Its arrays, which parts of them, and how they are laid out."""
    pieces = source.pieces
    texts = [part_text(piece) for piece in pieces]
    if len(pieces) == 1:
        return texts[0] + layout_text(pieces[0])
    if len({(piece.fit, str(piece.put)) for piece in pieces}) == 1:
        return " + ".join(texts) + layout_text(pieces[0])
    names = ", ".join(texts[:2]) + (", ..." if len(texts) > 3 else f", {texts[2]}" if len(texts) == 3 else "")
    layouts = {layout_text(piece) for piece in pieces}
    each = f", each{layouts.pop()[1:]}" if len(layouts) == 1 and layouts != {""} else ""
    return f"{names} {joined_text(pieces)}{each}"


def part_text(piece: Piece) -> str:
    """The array's name, and which part of it."""
    for axis, (length, index) in enumerate(zip(piece.cut, piece.take, strict=True)):
        if isinstance(index, int):
            return f"number {index} of {length} of {piece.name} on axis {axis}"
        if index.step == -1:
            return f"{piece.name} flipped"
        if index != slice(None):
            size = index.stop - index.start
            if length % size == 0 and index.start % size == 0:
                return f"part {index.start // size + 1} of {length // size} of {piece.name} on axis {axis}"
            return f"{index.start}:{index.stop} of {piece.name} on axis {axis}"
    return piece.name


def layout_text(piece: Piece) -> str:
    """How the window is laid out."""
    if piece.axes == tuple(range(len(piece.axes))):
        return ""
    natural = tuple(n for n, index in zip(piece.cut, piece.take, strict=True) if n > 1 and isinstance(index, slice))
    reshaped = "" if len(natural) == len(piece.split) else f" reshaped to {piece.split} and"
    return f",{reshaped} transposed {piece.axes}"


def joined_text(pieces: tuple[Piece, ...]) -> str:
    """On which axis the parts lie."""
    for axis, index in enumerate(pieces[0].put):
        if isinstance(index, int):
            return f"stacked on axis {axis}"
        if index != slice(None):
            return f"side by side on axis {axis}"
    return "side by side"
