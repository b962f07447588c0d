"""Which torch arrays feed which leaf of the port's parameters, found by their numbers. NumPy only."""

from parity.sources.find import Found, find_sources
from parity.sources.piece import Piece, Source

__all__ = ["Found", "Piece", "Source", "find_sources"]
