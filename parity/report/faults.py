"""The matrix fault by stage: where each injected fault was expected, and where the check found it.

A row is an object of faults.json: `name`, `model`, `equivalent`, `expected_stage` and `found_stage` (null where there
is none), `ratio_to_budget` (of the first divergence, or the largest of a run that agrees; null where it is infinite).
A row may have `about`, `reason`, `line` (the first wrong line of either side) and `command` for people, and `ratios`:
stage -> largest error / budget there, null where nothing was compared or it is infinite. Whatever else it has is
written to faults.json and not shown.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.report.figures import heat_png
from parity.report.heat import OVER, Cell, HeatMap
from parity.report.markup import element
from parity.report.tables import heat_legend, heat_table, page, section, table
from parity.report.text import NONE, count, printable, share
from parity.result import STAGES
from twinstep.errors import UserError
from twinstep.run_dir import write_atomically

Row = Mapping[str, Any]

FOUND, MISSED, ELSEWHERE, FOLLOWS, WITHIN = "●", "○", "✗", "◇", "·"
LEVELS = {FOUND: 4, MISSED: 0, ELSEWHERE: OVER, FOLLOWS: 2, WITHIN: 0}  # of a heat map
LEGEND = {
    4: f"{FOUND} found where expected, with error / budget",
    2: f"{FOLLOWS} follows from it",
    0: f"{WITHIN} within budget, {MISSED} expected but not found",
    OVER: f"{ELSEWHERE} found, not expected there",
}
SHORT = {stage: stage[:2] for stage in STAGES}
FOR_PEOPLE = ("about", "reason", "line", "command")


def outcome(row: Row) -> str:
    """One word or two for a row."""
    expected, found = row["expected_stage"], row["found_stage"]
    if row["equivalent"]:
        return "equivalent" if found is None else "false alarm"
    if found is None:
        return "missed"
    return "caught" if found == expected else "other stage"


def is_right(row: Row) -> bool:
    """Whether a fault was found at its stage, or an equivalent rewrite at none."""
    return outcome(row) in ("caught", "equivalent")


def sentence(rows: Sequence[Row]) -> str:
    """The whole matrix in one sentence."""
    faults = [outcome(row) for row in rows if not row["equivalent"]]
    quiet = [outcome(row) for row in rows if row["equivalent"]]
    said = []
    if faults:
        caught = sum(o != "missed" for o in faults)
        said.append(
            f"{caught} of {count(len(faults), 'fault')} that change a number caught, "
            f"{faults.count('caught')} at the right stage"
        )
    if quiet:
        said.append(f"{quiet.count('equivalent')} of {len(quiet)} equivalent rewrites within budget")
    return "; ".join(said or ["No faults were injected"]) + "."


def symbol(row: Row, stage: str) -> str:
    """What the matrix shows at a stage, "" where nothing is known."""
    expected = not row["equivalent"] and row["expected_stage"] == stage
    if row["found_stage"] == stage:
        return FOUND if expected else ELSEWHERE
    if expected:
        return MISSED
    ratio = row.get("ratios", {}).get(stage)
    return "" if ratio is None else FOLLOWS if ratio > 1 else WITHIN


def used(row: Row) -> str:
    """error / budget; a divergence without a number, such as a missing tensor, is infinite."""
    ratio = row["ratio_to_budget"]
    if ratio is None:
        return NONE if row["found_stage"] is None else share(math.inf)
    return share(ratio)


def print_fault_matrix(rows: Sequence[Row], console: Console) -> None:
    """Print the summary, then a line for each fault."""
    right = all(is_right(row) for row in rows)
    console.print(Text(f"{'✓' if right else '✗'} {sentence(rows)}", style="green" if right else "bold red"))
    matrix = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    matrix.add_column("fault", overflow="fold")
    matrix.add_column("model", no_wrap=True)
    for stage in STAGES:
        matrix.add_column(SHORT[stage], no_wrap=True, justify="center")
    matrix.add_column("used", no_wrap=True, justify="right")
    matrix.add_column("outcome", no_wrap=True)
    for row in rows:
        values = [row["name"], row["model"], *(symbol(row, stage) for stage in STAGES), used(row), outcome(row)]
        matrix.add_row(*(Text(printable(value)) for value in values), style="" if is_right(row) else "bold red")
    console.print(matrix)
    console.print(Text(", ".join(f"{SHORT[stage]} {stage}" for stage in STAGES), style="dim"))
    console.print(Text("\n".join(LEGEND.values()), style="dim"))


def write_fault_report(rows: Sequence[Row], out_dir: Path | str) -> list[Path]:
    """Write faults.json, faults.html and faults.png, each whole or not at all; returns their paths.

    Raises UserError if they cannot be written.
    """
    folder = Path(out_dir)
    files: dict[str, Callable[[], bytes | str]] = {
        "faults.json": lambda: json.dumps([finite(row) for row in rows], indent=1, allow_nan=False) + "\n",
        "faults.html": lambda: fault_page(rows),
        "faults.png": lambda: heat_png(matrix_of(rows), "Where each injected fault is found", LEGEND),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content())
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}; pass another --out-dir") from error
    return [folder / name for name in files]


def finite(row: Row) -> dict[str, Any]:
    """The row with null where a number is not finite."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def matrix_of(rows: Sequence[Row]) -> HeatMap:
    """Faults against stages; a cell has the symbol, and how far beyond its budget the error is."""
    cells = {}
    for row in rows:
        for stage in STAGES:
            shown = symbol(row, stage)
            if shown:
                text = shown
                if shown in (FOUND, ELSEWHERE):
                    text += f" {used(row)}"
                elif shown == FOLLOWS:
                    text += f" {share(row['ratios'][stage])}"
                cells[label(row), stage] = Cell(0.0, LEVELS[shown], text, outcome(row))
    return HeatMap([label(row) for row in rows], list(STAGES), cells)


def label(row: Row) -> str:
    """The name of a row; faults of two models may share one."""
    return printable(f"{row['name']} ({row['model']})")


def fault_page(rows: Sequence[Row]) -> str:
    """faults.html."""
    verdict = "agrees" if all(is_right(row) for row in rows) else "diverges"
    listed = []
    for row in rows:
        sign, style = ("✓", "agrees") if is_right(row) else ("✗", "diverges")
        said = element("span", f"{sign} {outcome(row)}", class_=style)
        stages = row["expected_stage"] or NONE, row["found_stage"] or NONE
        listed.append([row["name"], row["model"], said, *stages, used(row), *(row.get(key, "") for key in FOR_PEOPLE)])
    head = ["fault", "model", "outcome", "expected", "found", "budget used", *FOR_PEOPLE]
    caption = "The first stage at which the check finds each fault."
    return page(
        "Injected faults",
        element("h1", "Injected faults"),
        element("p", f"{'✓' if verdict == 'agrees' else '✗'} {sentence(rows)}", class_=f"verdict {verdict}"),
        section("Fault by stage", heat_legend(LEGEND), heat_table(matrix_of(rows), "fault", caption)),
        section("Faults", table("Each was injected alone, and the whole check was run.", head, listed)),
    )
