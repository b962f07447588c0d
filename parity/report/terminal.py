"""The report on a terminal: verdict, notes, a table of stages, and where the files are."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.report.source import print_lines
from parity.report.text import (
    NONE,
    count,
    duration,
    elide,
    near_one,
    number,
    printable,
    ratio,
    share,
    worst_element,
)
from parity.report.unseen import unseen_notes
from parity.result import STAGES, Divergence, Result, StageResult, ratio_to_budget

MARKS = {"agrees": "✓", "diverges": "✗", "unchecked": "?"}
COLORS = {"agrees": "green", "diverges": "bold red", "unchecked": "yellow"}
WIDE = 100  # columns of a terminal that shows every column of the table
LONGEST = 60  # letters of a name in the table
HEADINGS = {
    "step": "step",
    "relative L2": "rel. L2",
    "budget": "budget",
    "used": "used",
    "ratio": "ratio",
    "median": "median",
    "compared": "compared",
    "unchecked": "unchecked",
}


def print_report(result: Result, console: Console, files: Sequence[Path] = ()) -> None:
    """Print the verdict first, then what a reader must know beside it, then stage by stage.

    files: what `write_report` returned, named in the last line.
    """
    console.print(Text(f"{MARKS[result.verdict]} {printable(result.sentence)}", style=COLORS[result.verdict]))
    if result.first_divergence is not None:
        for line in told(result.first_divergence):
            console.print(Text(printable(line)))
    print_lines(result, console)
    for note in notes(result):
        console.print(Text(f"! {printable(note)}", style="yellow"))
    if (ratios := ratio_sentence(result)) is not None:
        console.print(Text(printable(ratios)))
    if result.stages:
        console.print(stage_table(result, console.width >= WIDE))
    ran = f"{count(result.steps, 'step')}, {seeds(result)}, {count(result.devices, 'device')}"
    console.print(Text(f"{ran}, {duration(result.seconds)}"))
    if (sides := ran_on(result)) is not None:
        console.print(Text(printable(sides)))
    if files:
        names = ", ".join(path.name for path in files)
        console.print(Text(printable(f"Written to {files[0].parent}: {names}")))


def told(d: Divergence) -> list[str]:
    """What stands below the sentence: both values where they are furthest apart, and the code on either side."""
    lines = []
    if d.diagnosis is not None:
        lines.append(
            f"Furthest off: {worst_element(d.diagnosis)}; norm {near_one(d.diagnosis.norm_ratio)} times PyTorch's, "
            f"cosine {near_one(d.diagnosis.cosine)}."
        )
    if d.code:
        lines.append(f"Computed by {d.code['torch']} in PyTorch, {d.code['jax']} in JAX.")
    return lines


def notes(result: Result) -> list[str]:
    """The sentences beside the verdict. Gradients that could not be checked are named even if the check did not."""
    found, said = result.stages.get("gradients"), [*result.notes, *unseen_notes(result)]
    if found is None or not found.unchecked or any("gradient" in note for note in result.notes):
        return said
    total = count(found.compared + found.unchecked, "comparison")
    return [f"{found.unchecked:,} of {total} of gradients could not have failed, and are unchecked.", *said]


def ratio_sentence(result: Result) -> str | None:
    """The port's errors beside the reference's own, in one sentence; None in float64, where the reference has none."""
    rated = {name: stage for name, stage in result.stages.items() if stage.compared and stage.ratio is not None}
    medians = [stage.median_ratio for stage in rated.values() if stage.median_ratio is not None]
    if not medians:
        return None
    name, worst = max(rated.items(), key=lambda item: item[1].ratio or 0)
    return (
        f"Error against float64, the port's by the reference's: median {ratio(max(medians))} in the worst stage, "
        f"{ratio(worst.ratio)} for the worst tensor ({name}, {elide(worst.tensor, LONGEST)}, step {worst.step})."
    )


def seeds(result: Result) -> str:
    """seed 0, or seeds 0 to 7."""
    return f"seed {result.seed}" if result.seeds == 1 else f"seeds {result.seed} to {result.seed + result.seeds - 1}"


def ran_on(result: Result) -> str | None:
    """The devices of either side; None where the result does not say."""
    found = result.environment
    if "torch device" not in found:
        return None
    return f"JAX on {found['jax devices']} ({found['platform']}), torch on {found['torch device']}"


def stage_table(result: Result, wide: bool) -> Table:
    """One row a stage. A narrow table leaves out what the others imply."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("worst tensor", overflow="fold")
    stages = {name: result.stages[name] for name in STAGES if name in result.stages}
    rows = {name: stage_numbers(stage) for name, stage in stages.items()}
    ratios = any(stage.median_ratio is not None for stage in stages.values())
    hidden = () if wide else ("used", "median")
    columns = [name for name in HEADINGS if name not in hidden and (ratios or name not in ("ratio", "median"))]
    for name in columns:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    for name, stage in stages.items():
        worst = elide(printable(stage.tensor), LONGEST) + (f" ({stage.init})" if wide else "")
        style = "" if stage.verdict == "agrees" else COLORS[stage.verdict]
        texts = [name, f"{MARKS[stage.verdict]} {stage.verdict}", worst if stage.relative_l2 else NONE]
        table.add_row(*map(Text, [*texts, *(rows[name][column] for column in columns)]), style=style)
    return table


def stage_numbers(stage: StageResult) -> dict[str, str]:
    """The numbers of a stage as text; those of its worst comparison do not apply where nothing was compared."""
    counts = {"compared": f"{stage.compared:,}", "unchecked": f"{stage.unchecked:,}"}
    if not stage.compared:
        return {**dict.fromkeys(HEADINGS, NONE), **counts}
    return {
        "step": str(stage.step) if stage.relative_l2 else NONE,
        "relative L2": number(stage.relative_l2),
        "budget": number(stage.budget),
        "used": share(ratio_to_budget(stage.relative_l2, stage.budget)),
        "ratio": ratio(stage.ratio),
        "median": ratio(stage.median_ratio),
        **counts,
    }
