"""The report on a terminal: verdict, notes, a table of stages, and where the files are."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.report.text import NONE, count, duration, number, printable, ratio, share
from parity.result import STAGES, Result, StageResult, ratio_to_budget

MARKS = {"agrees": "✓", "diverges": "✗", "unchecked": "?"}
COLORS = {"agrees": "green", "diverges": "bold red", "unchecked": "yellow"}
WIDE = 100  # columns of a terminal that shows every column of the table


def print_report(result: Result, console: Console, files: Sequence[Path] = ()) -> None:
    """Print the verdict first, then what a reader must know beside it, then stage by stage.

    files: what `write_report` returned, named in the last line.
    """
    console.print(Text(f"{MARKS[result.verdict]} {printable(result.sentence)}", style=COLORS[result.verdict]))
    for note in result.notes:
        console.print(Text(f"! {printable(note)}", style="yellow"))
    if result.stages:
        console.print(stage_table(result, console.width >= WIDE))
    ran = f"{count(result.steps, 'step')}, {seeds(result)}, {count(result.devices, 'device')}"
    console.print(Text(f"{ran}, {duration(result.seconds)}"))
    if files:
        names = ", ".join(path.name for path in files)
        console.print(Text(printable(f"Written to {files[0].parent}: {names}")))


def seeds(result: Result) -> str:
    """seed 0, or seeds 0 to 7."""
    return f"seed {result.seed}" if result.seeds == 1 else f"seeds {result.seed} to {result.seed + result.seeds - 1}"


def stage_table(result: Result, wide: bool) -> Table:
    """One row a stage. A narrow table leaves out what the others imply."""
    by_ratio = any(stage.median_ratio is not None for stage in result.stages.values())
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("worst tensor", overflow="fold")
    columns: list[tuple[str, Callable[[StageResult], str]]] = [
        ("step", lambda s: str(s.step) if s.relative_l2 else NONE),
        ("rel. L2", lambda s: number(s.relative_l2) if s.compared else NONE),
        ("budget", lambda s: number(s.budget) if s.compared else NONE),
        *([("used", used)] if wide else []),
        *([("ratio", lambda s: ratio(s.ratio))] if by_ratio else []),
        *([("median", lambda s: ratio(s.median_ratio))] if by_ratio and wide else []),
        ("compared", lambda s: f"{s.compared:,}"),
        ("unchecked", lambda s: f"{s.unchecked:,}"),
    ]
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name in STAGES:
        if name in result.stages:
            stage = result.stages[name]
            worst = printable(stage.tensor) + (f" ({stage.init})" if wide else "") if stage.relative_l2 else NONE
            numbers = [value(stage) for _, value in columns]
            style = "" if stage.verdict == "agrees" else COLORS[stage.verdict]
            verdict = f"{MARKS[stage.verdict]} {stage.verdict}"
            table.add_row(*map(Text, [name, verdict, worst, *numbers]), style=style)
    return table


def used(stage: StageResult) -> str:
    """The part of its budget that the worst comparison takes."""
    return share(ratio_to_budget(stage.relative_l2, stage.budget)) if stage.compared else NONE
