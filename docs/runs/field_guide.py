"""The catalogue of porting faults as the parity engine measured it: a table per stage and the picture of all traces.

The measurements are docs/runs/faults.json, written by `python -m parity faults --out-dir docs/runs` (minutes).
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from docs.runs._cures import CURES
from parity.result import STAGES

MEASURED = Path(__file__).parent / "faults.json"
IMAGES = Path(os.environ.get("TWINSTEP_IMAGES", "docs/images"))
BEYOND = 14.0  # powers of ten beyond the budget at which the colour ends


def symptom(fault: dict[str, Any]) -> str:
    """Where the engine saw it first, its error by the budget, the line that it named, and the flags if it takes any."""
    size = "beyond measure" if fault["ratio_to_budget"] is None else f"{decades(fault['ratio_to_budget'])} × budget"
    where = f"`{fault['tensor']}`" if fault["tensor"] else ""
    flags = f"; with `{fault['flags']}`" if fault["flags"] else ""
    line = f"; {fault['line']}" if fault.get("line") else ""
    return f"{where}, step {fault['step']}: {size}{line}{flags}"


def decades(ratio: float) -> str:
    return f"10^{math.floor(math.log10(ratio))}"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def tables(faults: list[dict[str, Any]]) -> None:
    for stage in STAGES:
        rows = [f for f in faults if f["expected_stage"] == stage]
        print(f"== table {stage} ==\n| fault | what is wrong | symptom | cure |\n|---|---|---|---|")
        for fault in rows:
            name = f"{fault['name']} ({fault['model']})"
            print("| " + " | ".join(map(cell, (name, fault["about"], symptom(fault), CURES[fault["name"]]))) + " |")
    print("== table equivalent ==\n| change | what it is | why no number changes |\n|---|---|---|")
    for fault in faults:
        if fault["equivalent"]:
            print("| " + " | ".join(map(cell, (fault["name"], fault["about"], fault["reason"]))) + " |")


def summary(faults: list[dict[str, Any]]) -> None:
    changing = [f for f in faults if not f["equivalent"]]
    same = [f for f in faults if f["equivalent"]]
    print("== summary ==")
    print(f"{sum(f['found_stage'] is not None for f in changing)} of {len(changing)} faults caught,")
    print(f"{sum(f['found_stage'] == f['expected_stage'] for f in changing)} of them at the stage where they arise;")
    print(f"{sum(f['found_stage'] is None for f in same)} of {len(same)} equivalent changes within the budget")


def draw(faults: list[dict[str, Any]]) -> None:
    """Error over budget by fault and stage: where each begins, and what follows from it."""
    changing = sorted((f for f in faults if not f["equivalent"]), key=lambda f: STAGES.index(f["expected_stage"]))
    image = np.full((len(changing), len(STAGES)), np.nan)
    for row, fault in enumerate(changing):
        for column, stage in enumerate(STAGES):
            ratio = fault["ratios"].get(stage)
            if ratio is not None:
                image[row, column] = math.log10(max(ratio, 1e-2))
            elif stage == fault["found_stage"]:  # a shape, a name, a type, or a budget of zero
                image[row, column] = BEYOND
    figure, axes = plt.subplots(figsize=(7, 0.16 * len(changing) + 1.4))
    shown = axes.imshow(np.clip(image, 0, BEYOND), aspect="auto", cmap="magma_r", vmin=0, vmax=BEYOND)
    for row, fault in enumerate(changing):
        axes.plot(STAGES.index(fault["found_stage"]), row, marker="o", markersize=3, color="deepskyblue")
    axes.set_xticks(range(len(STAGES)), STAGES, rotation=45, ha="left", fontsize=7)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(changing)), [f["name"] for f in changing], fontsize=6)
    bar = figure.colorbar(shown, ax=axes, shrink=0.3)
    bar.set_label("decades over the budget", fontsize=7)
    figure.tight_layout()
    figure.savefig(IMAGES / "faults.png", dpi=110)


if __name__ == "__main__":
    measured = json.loads(MEASURED.read_text())
    summary(measured)
    tables(measured)
    draw(measured)
