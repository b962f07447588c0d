"""The table behind every heat map: layer by stage, and stage by step.

A cell's value is the largest relative_l2 / budget of its comparisons; its level is the value's place on a log scale.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from parity.report.text import number, printable, share
from parity.result import STAGES, Result, Status, TensorResult, ratio_to_budget

WHOLE = "whole model"  # the row of what belongs to no layer: losses, rates, counters
MOST_ROWS = 40
FEWEST_ROWS = 5  # a coarser table than this says too little
MOST_COLUMNS = 12

# Upper bounds of the levels within budget, of which the first is exact equality.
BOUNDS = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
LEVELS = ("0: equal", "≤ 0.1 %", "≤ 1 %", "≤ 10 %", "≤ 100 %", "✗ over budget", "? unchecked")
OVER, UNCHECKED = 5, 6

_SEPARATOR = re.compile(r"([./])")
_SUFFIXES = re.compile(r"( \[\d+\]| #\d+| \((carried|anchored)\))+$")


class Comparison(NamedTuple):
    """One tensor at one step."""

    tensor: TensorResult
    step: int
    relative_l2: float
    budget: float
    ratio: float | None
    status: Status

    @property
    def share(self) -> float:
        """relative_l2 / budget; not a number counts as infinite."""
        value = ratio_to_budget(self.relative_l2, self.budget)
        return value if value == value else float("inf")


@dataclass(frozen=True)
class Cell:
    """Colour and text say the same."""

    value: float  # relative_l2 / budget
    level: int  # index into LEVELS
    text: str
    detail: str  # the worst comparison, in words


def judged(value: float, status: Status, detail: str) -> Cell:
    """A cell that shows how much of its budget an error uses."""
    if status == "unchecked":
        return Cell(value, UNCHECKED, "?", detail)
    if status == "diverges":
        return Cell(value, OVER, f"✗ {share(value)}", detail)
    level = next((i for i, bound in enumerate(BOUNDS) if value <= bound), OVER - 1)  # 1 + rounding is within budget
    return Cell(value, level, share(value), detail)


@dataclass(frozen=True)
class HeatMap:
    """A table of cells by (row, column); a pair that was never compared has none."""

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]
    left_out: list[str] = field(default_factory=list)  # rows for which there was no room, none of the worst


def comparisons(result: Result) -> list[Comparison]:
    """All comparisons, by stage and then in the order of execution."""
    return [
        Comparison(t, step, t.relative_l2[i], t.budget[i], t.ratio[i] if t.ratio else None, t.status[i])
        for t in result.tensors
        for i, step in enumerate(t.steps)
    ]


def by_layer(result: Result) -> HeatMap:
    """Layers in the order of execution against stages."""
    layer_of = layers(result.tensors)
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for c in comparisons(result):
        groups.setdefault((layer_of[c.tensor.stage, c.tensor.tensor], c.tensor.stage), []).append(c)
    cells = {at: cell(group) for at, group in groups.items()}
    rows = list(dict.fromkeys(layer for layer in layer_of.values() if layer != WHOLE))
    worst = sorted(rows, key=lambda row: -max(c.value for (r, _), c in cells.items() if r == row))
    kept = set(worst[:MOST_ROWS])
    columns = [stage for stage in STAGES if any(column == stage for _, column in cells)]
    whole = [WHOLE] if WHOLE in layer_of.values() else []
    return HeatMap([r for r in rows if r in kept] + whole, columns, cells, [r for r in rows if r not in kept])


def by_step(result: Result) -> HeatMap:
    """Stages against steps; neighbouring steps share a column where there are too many."""
    steps = sorted({step for stage in result.stages.values() for step in stage.maximum_by_step})
    size = -(-len(steps) // MOST_COLUMNS) or 1
    spans = [steps[i : i + size] for i in range(0, len(steps), size)]
    name = {span[0]: f"{span[0]}" if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in spans}
    cells = {}
    for stage, found in result.stages.items():
        for span in spans:
            values = {step: found.maximum_by_step[step] for step in span if step in found.maximum_by_step}
            if values:
                worst = max(values, key=lambda step: values[step])
                status: Status = "diverges" if values[worst] > 1 else "agrees"
                cells[stage, name[span[0]]] = judged(values[worst], status, f"step {worst}")
    return HeatMap([stage for stage in STAGES if stage in result.stages], list(name.values()), cells)


def cell(group: list[Comparison]) -> Cell:
    """The worst of a group; unchecked where none of it was checked."""
    checked = [c for c in group if c.status != "unchecked"]
    if not checked:
        return judged(
            0.0, "unchecked", f"{len(group)} unchecked: {printable(group[0].tensor.why_unchecked) or 'below the noise'}"
        )
    worst = max(checked, key=lambda c: (c.status == "diverges", c.share))
    t = worst.tensor
    error = printable(t.note) if t.note and worst.status == "diverges" else f"relative L2 {number(worst.relative_l2)}"
    return judged(worst.share, worst.status, f"{printable(t.tensor)}, step {worst.step}, {t.init}: {error}")


def layers(tensors: list[TensorResult]) -> dict[tuple[str, str], str]:
    """(stage, tensor) -> layer, in the order of execution.

    A layer is a module that has an activation, or that owns a parameter. Where these are too many for a table, their
    paths are cut to the same number of parts.
    """
    modules = {about(t) for t in tensors if t.stage == "activations"}
    parameters = {about(t) for t in tensors if t.stage == "weights"}
    paths: dict[tuple[str, str], list[str]] = {}
    for t in sorted(tensors, key=lambda t: t.stage != "activations"):
        name = about(t)
        if t.stage == "update" and name not in parameters:
            name = name.partition("/")[2]  # momentum/h.0.weight
        if name in modules or name in parameters:
            parts = _SEPARATOR.split(name)
            paths[t.stage, t.tensor] = parts if name in modules or len(parts) == 1 else parts[:-2]
    length = chosen_length(list(paths.values()))
    found = {at: printable("".join(path[:length])) for at, path in paths.items()}
    return found | {(t.stage, t.tensor): WHOLE for t in tensors if (t.stage, t.tensor) not in found}


def about(t: TensorResult) -> str:
    """The name of the module or parameter that a tensor's name holds."""
    name = _SUFFIXES.sub("", t.tensor)
    return name.removeprefix("d ") if t.stage == "gradients" else name


def chosen_length(paths: list[list[str]]) -> int:
    """To how many items paths are cut: as many as leave no more than MOST_ROWS, unless they leave too few rows."""
    lengths = range(1, max(map(len, paths), default=1) + 1, 2)  # names and separators alternate
    rows = {length: len({tuple(path[:length]) for path in paths}) for length in lengths}
    fitting = max((length for length in lengths if rows[length] <= MOST_ROWS), default=1)
    return fitting + 2 if rows[fitting] < FEWEST_ROWS and fitting + 2 in rows else fitting
