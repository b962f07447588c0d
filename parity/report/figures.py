"""The same pictures as PNG files, for a note or a README."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from parity.report import curves
from parity.report.heat import LEVELS, OVER, HeatMap
from parity.report.svg import Axis, Series, linear_axis, log_axis
from parity.report.text import elide
from parity.result import Result

LEVEL_COLORS = ("#ffffff", "#edf4fb", "#d3e5f5", "#a8cbea", "#6ea8da", "#b3261e")
MOST_LETTERS = 48  # of a row's name

LOOKS: dict[str, dict[str, Any]] = {
    "reference": {"color": "#7d8590", "linewidth": 5, "alpha": 0.5},
    "port": {"color": "#0757ba", "linestyle": "--"},
    "free": {"color": "#0757ba"},
    "limit": {"color": "#b3261e", "linestyle": ":"},
    "envelope": {"color": "#b9c2cc", "alpha": 0.6},
    "anchored": {"color": "#0f6b34", "linestyle": "", "marker": "o", "markersize": 4},
    "own": {"color": "#0f6b34", "linestyle": "", "marker": "o", "markersize": 8, "markerfacecolor": "none"},
}


def losses_png(result: Result) -> bytes:
    """A row of two charts for each initialization: both losses; their difference, envelope and budget."""
    rows = curves.figures(result)
    figure = Figure(figsize=(12, 0.7 + 3.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), row in zip(axes, rows, strict=True):
        draw(left, row.losses, linear_axis([y for s in row.losses for y in s.y]))
        draw(right, row.errors, log_axis([y for s in row.errors for y in s.y]))
        left.set_title(plain(f"{result.model}, {result.dtype}, {row.init} initialization"), parse_math=False)
        left.set_ylabel("loss (nats per target)")
        right.set_title("difference of the losses")
        right.set_ylabel("relative difference")
    return saved(figure)


def draw(axes: Axes, series: Sequence[Series], axis: Axis) -> None:
    """Series over steps; on a log axis zero lies at the bottom. What is not finite is left out of the line."""
    named = set()
    for s in series:
        y = np.array([max(v, axis.low) if math.isfinite(v) else math.nan for v in s.y])
        label = None if s.name in named else s.name
        named.add(s.name)
        if s.area:
            axes.fill_between(s.x, axis.low, y, label=label, linewidth=0, **LOOKS[s.style])
        else:
            axes.plot(s.x, y, label=label, **LOOKS[s.style])
    if axis.log:
        axes.set_yscale("log")
        axes.set_yticks(*zip(*axis.ticks(), strict=True))
        axes.minorticks_off()
    axes.set_ylim(axis.low, axis.high)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")


def heat_png(heat: HeatMap, title: str) -> bytes:
    """The heat map with its numbers: colour and text say the same."""
    height, width = len(heat.rows), len(heat.columns)
    figure = Figure(figsize=(3.2 + 0.95 * width, 1.3 + 0.27 * height), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(heat.rows):
        for column, other in enumerate(heat.columns):
            cell = heat.cells.get((name, other))
            if cell is None:
                continue
            unchecked = cell.status == "unchecked"
            color = LEVEL_COLORS[0 if unchecked else cell.level]
            hatch = "///" if unchecked else None
            axes.barh(row, 1, 1, left=column, color=color, edgecolor="#d0d7de", linewidth=0.5, hatch=hatch)
            ink = "white" if not unchecked and cell.level == OVER else "black"
            axes.text(column + 0.5, row, cell.text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xlim(0, max(width, 1))
    axes.set_ylim(max(height, 1) - 0.5, -0.5)
    axes.set_xticks([column + 0.5 for column in range(width)], map(plain, heat.columns), parse_math=False)
    axes.set_yticks(range(height), [elide(plain(row), MOST_LETTERS) for row in heat.rows], parse_math=False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_title(plain(title), fontsize=11, parse_math=False)
    handles = [Patch(facecolor=color, edgecolor="#d0d7de") for color in LEVEL_COLORS]
    figure.legend(handles, LEVELS, loc="outside lower center", ncols=len(LEVELS), frameon=False, fontsize=8)
    return saved(figure)


def plain(text: str) -> str:
    """Text that the picture's own font can draw."""
    return text.encode("ascii", "backslashreplace").decode()


def saved(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
