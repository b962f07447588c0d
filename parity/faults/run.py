"""Inject every fault into the check that users run, and see where each is caught."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.check import Request, check_here
from parity.faults.catalogue import CATALOGUE
from parity.faults.fault import Fault
from parity.output import write_json
from parity.reference import Reference, make_reference
from parity.result import STAGES, Result, ratio_to_budget
from parity.subjects import subject
from recipe.config import Config
from recipe.data import Data
from recipe.errors import UserError

STEPS = 5  # the least that shows warm-up, warm-down, a resume and the native start's third step


@dataclass(frozen=True)
class Outcome:
    """What the check said about one fault."""

    fault: Fault
    result: Result

    @property
    def found(self) -> str | None:
        first = self.result.first_divergence
        return None if first is None else first.stage

    @property
    def right(self) -> bool:
        return self.found == self.fault.stage

    def ratios(self) -> dict[str, float | None]:
        """Stage -> largest error as a multiple of its budget; None where nothing could be compared."""
        return {name: max(stage.maximum_by_step.values(), default=None) for name, stage in self.result.stages.items()}

    def to_json(self) -> dict[str, Any]:
        first = self.result.first_divergence
        ratios = {name: finite(x) for name, x in self.ratios().items()}
        if first is None:
            ratio = max((x for x in ratios.values() if x is not None), default=None)
        else:
            ratio = finite(ratio_to_budget(first.relative_l2, first.budget))
        return {
            "name": self.fault.name,
            "model": self.fault.model,
            "about": self.fault.about,
            "equivalent": self.fault.stage is None,
            "reason": self.fault.equivalent,
            "expected_stage": self.fault.stage,
            "found_stage": self.found,
            "ratio_to_budget": ratio,
            "tensor": None if first is None else first.tensor,
            "step": None if first is None else first.step,
            "init": None if first is None else first.init,
            "note": "" if first is None else first.note,
            "devices": self.fault.devices,
            "ratios": ratios,
        }


def finite(x: float | None) -> float | None:
    """None for an error beyond measure: where the budget is zero, or the tensor is missing."""
    return None if x is None or x == float("inf") else x


class References:
    """Keeps the reference of the last configuration: faults that share one come one after another."""

    def __init__(self) -> None:
        self.config: Config | None = None
        self.kept: dict[str, Reference] = {}

    def __call__(self, config: Config, data: Data, init: str, with_trajectory: bool) -> Reference:
        if config != self.config:
            self.config, self.kept = config, {}
        if init not in self.kept:
            self.kept[init] = make_reference(config, data, init, with_trajectory)
        return self.kept[init]


def config_of(fault: Fault) -> Config:
    return fault.change(subject(fault.model, "float64", STEPS, 0))


def choose(model: str | None, only: str | None) -> list[Fault]:
    """The faults asked for, those of one configuration together. Raises UserError where there are none."""
    chosen = [f for f in CATALOGUE if model in (None, f.model) and only in (None, f.name)]
    if not chosen:
        near = [f.name for f in CATALOGUE if only and only.lower() in f.name.lower()]
        hint = f"perhaps {near[0]!r} was meant" if near else "leave --only out to see all"
        raise UserError(f"no fault{f' of {model}' if model else ''} is called {only!r}; {hint}")
    configs = [config_of(fault) for fault in CATALOGUE]
    return sorted(chosen, key=lambda fault: configs.index(config_of(fault)))


def inject(faults: Sequence[Fault]) -> Iterator[Outcome]:
    """One check per fault. Those of several devices need as many in this process."""
    references = References()
    for fault in faults:
        if fault.devices > jax.device_count():
            raise UserError(f"{fault.name} needs {fault.devices} devices, this process has {jax.device_count()}")
        yield Outcome(fault, check_here(Request(config_of(fault), devices=fault.devices), references, fault.inject))


def run_catalogue(model: str | None, only: str | None, folder: Path) -> int:
    """Print the matrix of faults and stages, write faults.json; 0 if each is where it belongs, else 1."""
    faults = choose(model, only)
    jax.config.update("jax_num_cpu_devices", 2)  # before JAX starts its devices
    console, outcomes, started = Console(), [], time.monotonic()
    with console.status("injecting faults") as status:
        for outcome in inject(faults):
            outcomes.append(outcome)
            status.update(f"{len(outcomes)} of {len(faults)}: {outcome.fault.name}")
    console.print(matrix(outcomes))
    changing = [o for o in outcomes if o.fault.stage is not None]
    same = [o for o in outcomes if o.fault.stage is None]
    console.print(
        f"{sum(o.found is not None for o in changing)} of {len(changing)} faults caught, "
        f"{sum(o.right for o in changing)} at the stage where they arise; "
        f"{sum(o.right for o in same)} of {len(same)} equivalents within budget; {time.monotonic() - started:.0f} s"
    )
    path = folder / "faults.json"
    write_json(path, [o.to_json() for o in outcomes])
    console.print(f"Written to {path}")
    return 0 if all(o.right for o in outcomes) else 1


def matrix(outcomes: Sequence[Outcome]) -> Table:
    """Fault by stage: where it was first seen, what followed from it, what stayed within budget."""
    table = Table(
        caption="◆ first seen   ◇ follows   · within budget   blank: nothing compared   ✗ not where expected",
        padding=(0, 0),
        box=None,
    )
    for name, width in (("fault", 27), ("model", 10), ("expected", 12), ("found", 12), ("error/budget", 12)):
        table.add_column(name, max_width=width, no_wrap=True)
    for stage in STAGES:
        table.add_column(stage[:3], width=4)
    for outcome in outcomes:
        json = outcome.to_json()
        ratio = json["ratio_to_budget"]
        table.add_row(
            outcome.fault.name,
            outcome.fault.model,
            outcome.fault.stage or "(equivalent)",
            Text(outcome.found or "–", style="" if outcome.right else "bold red") + ("" if outcome.right else " ✗"),
            "∞" if ratio is None else f"{ratio:.2g}",
            *(mark(outcome, stage) for stage in STAGES),
        )
    return table


def mark(outcome: Outcome, stage: str) -> str:
    ratio = outcome.ratios()[stage]
    if stage == outcome.found:
        return "◆"
    if ratio is None:
        return ""
    return "◇" if ratio > 1 else "·"
