"""A line of somebody's code, as reports name it, and the answer of a search for the wrong one."""

from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Line:
    """Where something is computed. A region, of which no one line is known to be the cause: `exact` is false."""

    file: str
    first: int
    last: int
    function: str
    exact: bool = True

    def __str__(self) -> str:
        lines = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{short(self.file)}:{lines} {self.function}"


def one_line(file: str, number: int, function: str) -> Line:
    """A single line."""
    return Line(file, number, number, function)


def short(file: str) -> str:
    """The file as seen from here: below the working directory, or in the installed packages; else its whole path."""
    path = Path(file)
    for packages in PACKAGES:
        if packages in path.parts:
            start = len(path.parts) - path.parts[::-1].index(packages)
            return str(Path(*path.parts[start:]))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


@dataclass(frozen=True)
class Lines:
    """The first wrong line of each side; None where no line of the user's is known.

    operations, operands: by side, "torch" and "jax": what is computed there, and from what, in words.
    """

    torch: Line | None
    jax: Line | None
    operations: dict[str, str] = field(default_factory=dict)
    operands: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        named = [f"{name} {line}" for name, line in (("torch", self.torch), ("JAX", self.jax)) if line is not None]
        return ", ".join(named)
