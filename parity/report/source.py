"""The lines of source that a divergence comes from, side by side."""

import linecache
from collections.abc import Iterator
from typing import NamedTuple

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from parity.lines.line import Line
from parity.report.markup import Markup, element
from parity.report.tables import section
from parity.report.text import printable
from parity.result import Result

AROUND = 3  # lines before and after
WIDE = 100  # columns of a terminal in which two excerpts stand side by side
SIDES = (("torch", "PyTorch"), ("jax", "JAX"))


class Shown(NamedTuple):
    """A line of source, and whether it is one of those that are wrong."""

    number: int
    text: str
    wrong: bool


def excerpt(line: Line) -> list[Shown]:
    """The line with those around it; nothing where the file cannot be read."""
    source = linecache.getlines(line.file)
    numbers = range(max(1, line.first - AROUND), min(len(source), line.last + AROUND) + 1)
    return [Shown(n, source[n - 1].rstrip("\n").expandtabs(4), line.first <= n <= line.last) for n in numbers]


def sides(result: Result) -> Iterator[tuple[str, str, Line | None]]:
    """Key, name and line of both frameworks."""
    if result.lines is not None:
        for key, name in SIDES:
            yield key, name, getattr(result.lines, key)


def what_is_read(result: Result, key: str) -> list[str]:
    """What the line computes, and from what."""
    assert result.lines is not None
    operation, operands = result.lines.operations.get(key, ""), result.lines.operands.get(key, [])
    return [f"{operation} of {', '.join(operands)}" if operands else operation] if operation else []


def print_lines(result: Result, console: Console) -> None:
    """Both excerpts, beside each other where the terminal is wide enough."""
    width = console.width // 2 if console.width >= WIDE else console.width
    panels = []
    for key, name, line in sides(result):
        text = Text(overflow="ellipsis", no_wrap=True)
        for number, source, wrong in [] if line is None else excerpt(line):
            style = "bold red" if wrong else "dim"
            text.append(f"{'>' if wrong else ' '} {number:4} {printable(source)}\n", style=style)
        for words in what_is_read(result, key):
            text.append(printable(words), style="")
        where = "no line is known" if line is None else f"{'' if line.exact else 'at or near '}{line}"
        panels.append(Panel(text, title=Text(printable(f"{name}: {where}")), title_align="left", width=width))
    if panels:
        console.print(Columns(panels, padding=0))


def lines_section(result: Result) -> Iterator[Markup]:
    """Both excerpts in the report."""
    columns = []
    for key, name, line in sides(result):
        where = "no line is known" if line is None else f"{'' if line.exact else 'at or near '}{line}"
        parts = [element("h3", name), element("p", element("code", where))]
        if line is not None and (found := excerpt(line)):
            rows = [
                element("span", f"{number:4}  {source}", class_="wrong" if wrong else "soft")
                for number, source, wrong in found
            ]
            parts.append(element("pre", element("code", Markup("\n".join(rows)))))
        parts += [element("p", words, class_="soft") for words in what_is_read(result, key)]
        columns.append(element("div", *parts))
    if columns:
        yield section("The lines", element("div", *columns, class_="sides"))
