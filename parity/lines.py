"""A line of somebody's code, as reports name it."""

from typing import NamedTuple


class Cast(NamedTuple):
    """A line that makes floating numbers narrower than float64."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"
