"""Inject every fault into the check that users run, and see where each is caught."""

import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from parity.check import SEEDS, check_here
from parity.check_configs import subject, with_flags
from parity.faults.catalogue import CATALOGUE
from parity.faults.fault import Fault
from parity.reference import Reference, make_reference
from parity.report.faults import is_right, print_fault_matrix, write_fault_report
from parity.request import Request
from parity.result import Result, ratio_to_budget
from twinstep.config import Config
from twinstep.data import Data
from twinstep.errors import UserError
from twinstep.terminal import table_console

STEPS = 5  # the least that shows warm-up, warm-down, a resume and the native start's third step
CHECK = "python -m parity check"


@dataclass(frozen=True)
class Outcome:
    """What the check said about one fault."""

    fault: Fault
    result: Result

    @property
    def found(self) -> str | None:
        """The stage of the first divergence, None if all agrees."""
        first = self.result.first_divergence
        return None if first is None else first.stage

    @property
    def right(self) -> bool:
        """Whether that is the stage at which the fault arises."""
        return self.found == self.fault.stage

    def ratios(self) -> dict[str, float | None]:
        """Stage -> largest error as a multiple of its budget; None where nothing could be compared."""
        return {name: max(stage.maximum_by_step.values(), default=None) for name, stage in self.result.stages.items()}

    def to_json(self) -> dict[str, Any]:
        """A row of faults.json, see `parity.report.faults`."""
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
            "line": "" if self.result.lines is None else str(self.result.lines),
            "flags": self.fault.flags,
            "command": command_of(self.fault),
            "ratios": ratios,
        }


def finite(x: float | None) -> float | None:
    """None for an error beyond measure: where the budget is zero, or the tensor is missing."""
    return None if x is None or x == float("inf") else x


class References:
    """Keeps the references of the last configuration: faults that share one come one after another."""

    def __init__(self) -> None:
        self.config: Config | None = None
        self.kept: dict[tuple[int, str], Reference] = {}  # by seed and initialization

    def __call__(self, config: Config, data: Data, init: str, first: bool) -> Reference:
        """As `make_reference`."""
        of_any_seed = replace(config, train=replace(config.train, seed=0))
        if of_any_seed != self.config:
            self.config, self.kept = of_any_seed, {}
        at = config.train.seed, init
        if at not in self.kept:
            self.kept[at] = make_reference(config, data, init, first)
        return self.kept[at]


@cache
def config_of(fault: Fault) -> Config:
    """The configuration in which a fault is injected: that of `command_of`."""
    return with_flags(subject(fault.model, steps=STEPS), fault.trainer_flags)


def command_of(fault: Fault) -> str:
    """The command that would show the fault in a port that has it."""
    return shlex.join([*CHECK.split(), fault.model, "--steps", str(STEPS), *shlex.split(fault.flags)])


def choose(model: str | None, only: str | None) -> list[Fault]:
    """The faults asked for, those of one configuration together."""
    chosen = [f for f in CATALOGUE if model in (None, f.model) and only in (None, f.name)]
    configs = [config_of(fault) for fault in CATALOGUE]
    return sorted(chosen, key=lambda fault: configs.index(config_of(fault)))


def inject(faults: Sequence[Fault]) -> Iterator[Outcome]:
    """One check per fault. Those of several devices need as many in this process.

    Generation takes longer than all other stages, and comes last: it is left out where an earlier one must diverge.
    """
    references = References()
    for fault in faults:
        if fault.devices > jax.device_count():
            raise UserError(f"{fault.name} needs {fault.devices} devices, this process has {jax.device_count()}")
        config, generation = config_of(fault), fault.stage in (None, "generation")
        seeds = 1 if config.train.dtype == "float64" else SEEDS
        request = Request(config, seeds, fault.devices, generation=generation)
        yield Outcome(fault, check_here(request, references, fault.inject))


def run_catalogue(model: str | None, only: str | None, folder: Path) -> int:
    """Print the matrix of faults and stages, write the report; 0 if each is where it belongs, else 1."""
    faults = choose(model, only)
    devices = max(fault.devices for fault in faults)
    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)  # before JAX starts its devices
    console, rows, started = table_console(), list[dict[str, Any]](), time.monotonic()
    with compile_once(), console.status("injecting faults") as status:
        for outcome in inject(faults):
            rows.append(outcome.to_json())
            status.update(f"{len(rows)} of {len(faults)}: {outcome.fault.name}")
    print_fault_matrix(rows, console)
    written = write_fault_report(rows, folder)
    names = ", ".join(path.name for path in written)
    console.print(f"{time.monotonic() - started:.0f} s. Written to {folder}: {names}")
    return 0 if all(map(is_right, rows)) else 1


@contextmanager
def compile_once() -> Iterator[None]:
    """Compile once what faults do not change: one of the loss leaves the optimizer as it is, one of Muon the model.

    Each check builds its own functions, and JAX's cache in memory is keyed by the function; its cache on disk is keyed
    by the program.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()  # else it would go on writing to the deleted folder
