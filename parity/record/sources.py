"""`Carried`, which says how the port's leaves are made of torch's arrays, as plain values and back."""

from typing import Any

from parity.pair.carrying import Carried
from parity.sources import Piece, Source


def carried_values(carried: Carried) -> dict[str, Any]:
    """Lists, dicts, strings, numbers and arrays."""
    return {
        "sources": {
            leaf: {"shape": source.shape, "pieces": [piece_values(piece) for piece in source.pieces]}
            for leaf, source in carried.sources.items()
        },
        "shapes": carried.shapes,
        "missing": carried.missing,
        "doubts": carried.doubts,
        "constants": carried.constants,
    }


def read_carried(values: dict[str, Any]) -> Carried:
    """The inverse of `carried_values`."""
    return Carried(
        {
            leaf: Source(tuple(source["shape"]), tuple(read_piece(piece) for piece in source["pieces"]))
            for leaf, source in values["sources"].items()
        },
        {name: tuple(shape) for name, shape in values["shapes"].items()},
        values["missing"],
        values["doubts"],
        values["constants"],
    )


def piece_values(piece: Piece) -> dict[str, Any]:
    """A slice is [start, stop, step]."""

    def plain(i: int | slice | None) -> Any:
        return [plain(i.start), plain(i.stop), plain(i.step)] if isinstance(i, slice) else None if i is None else int(i)

    return {
        "name": piece.name,
        **{name: [int(n) for n in getattr(piece, name)] for name in ("cut", "split", "axes", "fit")},
        **{name: [plain(i) for i in getattr(piece, name)] for name in ("take", "put")},
    }


def read_piece(values: dict[str, Any]) -> Piece:
    """The inverse of `piece_values`."""

    def index(indices: list[Any]) -> tuple[int | slice, ...]:
        return tuple(slice(*i) if isinstance(i, list) else i for i in indices)

    lengths = {name: tuple(values[name]) for name in ("cut", "split", "axes", "fit")}
    return Piece(values["name"], **lengths, take=index(values["take"]), put=index(values["put"]))
