"""What a terminal is shown: tables, which may go to a file too, and the bar of a run."""

import sys
from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.progress import Progress

UNLIMITED = 10_000  # columns
ECHO = 4  # columns left free behind the bar, where the terminal writes "^C"


def table_console(*, highlight: bool = True) -> Console:
    """As wide as the terminal. In a file or a pipe a line is as long as it need be, so that no name is cut or wrapped.

    highlight: numbers and paths in colour.
    """
    return Console(highlight=highlight, width=None if sys.stdout.isatty() else UNLIMITED)


class Bar(Progress):
    """A progress bar that Ctrl-C does not break: at the terminal's edge "^C" would go on to a second line, and rich,
    which erases one, would leave the first line as a second bar."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Called by rich for what it draws."""
        return [Short(table) for table in super().get_renderables()]


class Short(NamedTuple):
    """Something that rich draws, `ECHO` columns narrower than the terminal."""

    drawn: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Constrain(self.drawn, options.max_width - ECHO)
