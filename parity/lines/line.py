"""A line of somebody's code, as reports name it."""

from typing import NamedTuple


class Line(NamedTuple):
    """Where something is computed. A region, of which no one line is known to be the cause: `exact` is false."""

    file: str
    first: int
    last: int
    function: str
    exact: bool = True

    def __str__(self) -> str:
        lines = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.file}:{lines} {self.function}"


def one_line(file: str, number: int, function: str) -> Line:
    """A single line."""
    return Line(file, number, number, function)
