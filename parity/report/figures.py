"""The same pictures as PNG files, for a note or a README."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from parity.report import curves
from parity.report.heat import OVER, UNCHECKED, HeatMap
from parity.report.svg import Axis, Series, linear_axis, log_axis
from parity.report.text import elide, printable
from parity.result import Result

LEVEL_COLORS = ("#ffffff", "#edf4fb", "#d3e5f5", "#a8cbea", "#6ea8da", "#b3261e", "#ffffff")
MOST_LETTERS = 48  # of a row's name, or of the title of half a row

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
    figure = Figure(figsize=(12, 1 + 3.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), row in zip(axes, rows, strict=True):
        draw(left, row.losses, linear_axis([y for s in row.losses for y in s.y]))
        draw(right, row.errors, log_axis([y for s in row.errors for y in s.y]))
        title = plain(f"{result.model}, {result.dtype}, {row.init} initialization")
        left.set_title(elide(title, MOST_LETTERS), parse_math=False)
        left.set_ylabel("loss (nats per target)")
        right.set_title("difference of the losses")
        right.set_ylabel("relative difference")
    left, right = (a.get_legend_handles_labels() for a in axes[0])
    handles, labels = left[0] + right[0], left[1] + right[1]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return saved(figure)


def draw(axes: Axes, series: Sequence[Series], axis: Axis) -> None:
    """Series over steps; on a log axis zero lies at the bottom. What is not finite is a cross at the top edge."""
    for s in series:
        y = np.array([max(v, axis.low) if math.isfinite(v) else math.nan for v in s.y])
        if s.area:
            axes.fill_between(s.x, axis.low, y, label=s.name, linewidth=0, **LOOKS[s.style])
        else:
            axes.plot(s.x, y, label=s.name, **LOOKS[s.style])
        lost = np.array(s.x)[np.isnan(y)]
        if lost.size:
            axes.plot(lost, np.full(lost.size, axis.high), "x", color="#b3261e", clip_on=False)
    if axis.log:
        axes.set_yscale("log")
        axes.set_yticks(*zip(*axis.ticks(), strict=True))
        axes.minorticks_off()
    axes.set_ylim(axis.low, axis.high)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def heat_png(heat: HeatMap, title: str, legend: Mapping[int, str]) -> bytes:
    """The heat map with its texts. legend: what some of its levels mean."""
    height, width = len(heat.rows), len(heat.columns)
    figure = Figure(figsize=(max(9, 3.2 + 0.95 * width), 1.3 + 0.27 * height), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(heat.rows):
        for column, other in enumerate(heat.columns):
            cell = heat.cells.get((name, other))
            if cell is not None:
                axes.add_patch(Rectangle((column, row - 0.5), 1, 1, **look(cell.level)))
                ink = "white" if cell.level == OVER else "black"
                axes.text(column + 0.5, row, cell.text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xlim(0, max(width, 1))
    axes.set_ylim(max(height, 1) - 0.5, -0.5)
    axes.set_xticks([column + 0.5 for column in range(width)], map(plain, heat.columns), parse_math=False)
    axes.set_yticks(range(height), [elide(plain(row), MOST_LETTERS) for row in heat.rows], parse_math=False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, labelsize=9)
    axes.spines[:].set_visible(False)
    figure.suptitle(elide(plain(title), 2 * MOST_LETTERS), fontsize=11, parse_math=False)
    handles = [Patch(**look(level)) for level in legend]
    figure.legend(handles, legend.values(), loc="outside lower center", ncols=len(legend), frameon=False, fontsize=8)
    return saved(figure)


def look(level: int) -> dict[str, Any]:
    """A cell's colours and hatching as matplotlib's arguments."""
    hatch = "////" if level == UNCHECKED else None
    return {"facecolor": LEVEL_COLORS[level], "edgecolor": "#d0d7de", "linewidth": 0.5, "hatch": hatch}


def plain(text: str) -> str:
    """Text that the picture's own font can draw."""
    return printable(text).encode("ascii", "backslashreplace").decode()


def saved(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
