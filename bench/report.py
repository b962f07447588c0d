"""The table on the terminal, the JSON, and the picture."""

import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.options import Row
from twinstep.errors import UserError
from twinstep.terminal import table_console

MOMENT = "%Y-%m-%d %H:%M"
MOST_COLUMNS = 3  # of the picture


def machine(device: str) -> dict[str, Any]:
    """What the figures belong to. device: as JAX names it."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    return {
        "device": device,
        "cpu": model or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "torch", "numpy")},
        "date": time.strftime(MOMENT),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def print_table(rows: list[Row], peak: dict[str, float], device: str, left_out: Sequence[str] = ()) -> None:
    """A line per side. Ratio: how many times as long as jax_impl (or as much memory), with quartiles.

    left_out: measurements that the budget of time did not allow, or not all of them.
    """
    has_mfu = any("mfu" in row.extra for row in rows)
    table = Table(box=None, pad_edge=False)
    for name in ("work", "side"):
        table.add_column(name)
    for name in ("median", "quartiles", "unit", "ratio to jax", "of peak", "others"):
        table.add_column(name, justify="right")
    for name in ("tokens/s", "MFU") if has_mfu else ():
        table.add_column(name, justify="right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({row.ratio_low:.2f} ... {row.ratio_high:.2f})"
        table.add_row(
            row.work,
            row.side,
            number(row.value),
            "" if row.low == row.high else f"{number(row.low)} ... {number(row.high)}",
            row.unit,
            ratio,
            "" if row.peak_share is None else f"{100 * row.peak_share:.0f} %",
            "" if row.others is None else f"{row.others:.2f}",
            *speed_of(row),
        )
    console = table_console()
    console.print(table)
    shown = ", ".join(f"{name} {flops / 1e9:,.0f}" for name, flops in peak.items())
    console.print(f"\n{device}; largest matrix product, GFLOP/s: {shown}.")
    console.print("others: cores that other processes kept busy meanwhile. MFU: of the maker's figure." if has_mfu else
                  "others: cores that other processes kept busy meanwhile.")  # fmt: skip
    if left_out:
        console.print(f"not measured, or not all of it, for lack of time: {', '.join(left_out)}")


def speed_of(row: Row) -> list[str]:
    """Tokens per second and MFU, where the latter is known."""
    if "mfu" not in row.extra:
        return []
    return [number(row.extra["tokens_per_second"]), f"{row.extra['mfu']:.1%}"]


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_json(
    path: Path, command: str, rows: list[Row], peak: dict[str, float], device: str, left_out: Sequence[str] = ()
) -> None:
    """Everything that was printed and each sample. Raises UserError where it cannot be written."""
    found = {"command": command, "machine": machine(device), "peak_flops": peak, "left_out": list(left_out),
             "rows": [asdict(row) for row in rows]}  # fmt: skip
    try:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror or error}") from error


def draw(path: Path, rows: list[Row]) -> None:
    """Ratios as bars, and growth as lines on logarithmic axes, into one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [row for row in rows if row.ratio is not None]
    slopes = [row for row in rows if row.work.startswith("growth, slope in ")]
    axes_names = list(dict.fromkeys(row.work.removeprefix("growth, slope in ") for row in slopes))
    panels = max(1, bool(bars) + len(axes_names))
    columns = min(panels, MOST_COLUMNS)
    lines = math.ceil(panels / columns)
    size = (max(5 * columns, 6), 4.5 * lines)
    figure, panel_axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for unused in panel_axes.flat[panels:]:
        unused.remove()
    panel = iter(panel_axes.flat)
    if bars:
        axes = next(panel)
        names = [f"{row.work}: {row.side}" for row in bars]
        axes.barh(names, [row.ratio for row in bars], color="tab:blue")
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xscale("log")
        axes.set_xlabel("times as long (or as much memory) as jax_impl")
        axes.invert_yaxis()
    for axis in axes_names:
        axes = next(panel)
        for row in slopes:
            if row.work.endswith(f" in {axis}"):
                axes.loglog(row.extra["sizes"], row.extra["seconds"], "o-", label=f"{row.side}, slope {row.value:.2f}")
        counted = next(row for row in slopes if row.work.endswith(f" in {axis}"))
        flops = [f / counted.extra["flops"][0] * counted.extra["seconds"][0] for f in counted.extra["flops"]]
        axes.loglog(counted.extra["sizes"], flops, "k:", label=f"FLOPs, slope {counted.extra['flops_slope']:.2f}")
        axes.set_xlabel(axis)
        axes.set_xticks(counted.extra["sizes"], [str(size) for size in counted.extra["sizes"]])
        axes.minorticks_off()
        axes.set_ylabel("seconds per step")
        axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
