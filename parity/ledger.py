"""Every comparison of a check, entered as it is made, judged at the end."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from parity.budget import EPS, SPREADS, TOLERANCES, Error, Spread, Tolerance, error
from parity.comparable import unlike
from parity.diagnosis import diagnose, largest_rounding, worth_a_diagnosis
from parity.entries import Entry, Key
from parity.result import STAGES, Divergence, StageResult, TensorResult
from parity.rounding import rounding
from parity.verdicts import first_divergence, first_shift, judge_entry, shift_of, stage_result, tensor_result


class Place(NamedTuple):
    """What a check is at: whatever breaks there is entered there."""

    stage: str
    what: str
    step: int


@dataclass
class Ledger:
    """Comparisons by key and step, in the order in which their keys were first met: that of the execution.

    The same key at the same step again is another seed: squared norms add up, and the verdict is on their roots.
    """

    dtype: str
    spread: Spread = SPREADS["float32"]  # of the errors of activations and gradients, where these are ratios
    entries: dict[Key, dict[int, Entry]] = field(default_factory=dict)
    place: Place = field(default_factory=lambda: Place(STAGES[0], "", 0))
    sides: tuple[str, str] = ("torch", "JAX")  # what notes call them

    def now(self, stage: str, what: str, step: int = 0) -> None:
        """What follows belongs to this stage."""
        self.place = Place(stage, what, step)

    def enter(
        self,
        key: Key,
        step: int,
        reference: Any,
        port: Any,
        truth: Any = None,
        serial: Any = None,
        *,
        tolerance: Tolerance | None = None,
        eps: float | None = None,
        scale: float = 0.0,
    ) -> None:
        """Enter a tensor. Shapes and types must be equal, which is no matter of rounding.

        truth, serial: see `parity.budget.error`. tolerance: the stage's when left out. eps: the spacing at 1 of the
        numbers, that of their type when left out. scale: a norm below which 2 eps of it are noise; at least that of
        the largest tensor of the same unit.
        """
        reference, port = np.asarray(reference), np.asarray(port)
        tolerance = tolerance or TOLERANCES[self.dtype][key.stage]
        if (why := unlike(reference, port, any_type=tolerance.kind == "exact", sides=self.sides)) is not None:
            if why.wrong:
                self.refuse(key, step, why.note)
            elif step not in self.entries.get(key, {}):
                self.vacuous(key, step, why.note)
            return
        found = error(reference, port, truth, serial)
        rounded = rounding(reference, port, truth) if tolerance.kind == "ratio" and truth is not None else None
        entry = self.entries.setdefault(key, {}).get(step)
        if entry is None:
            eps = eps or EPS.get(str(port.dtype), EPS["float64"])
            self.entries[key][step] = Entry(found, port.size, eps, tolerance, scale**2, rounding=rounded)
            if worth_a_diagnosis(found, tolerance, eps):
                most = largest_rounding(found, tolerance, eps)
                self.entries[key][step].diagnosis = diagnose(reference, port, step, most)
        elif not entry.note:
            entry.error = entry.error + found
            entry.seeds += 1
            if rounded is not None and entry.rounding is not None:
                entry.rounding = entry.rounding + rounded

    def refuse(self, key: Key, step: int, note: str) -> None:
        """Enter a difference that is not one of size: a name, shape or type that is wrong or missing."""
        self.entries.setdefault(key, {})[step] = Entry(
            Error(math.inf, 0.0, 1.0), 0, EPS[self.dtype], Tolerance("exact", 0.0, ""), note=note
        )

    def refuse_here(self, init: str, note: str) -> None:
        """Enter that what the check is at could not be judged, and why."""
        self.refuse(Key(self.place.stage, self.place.what, init), self.place.step, note)

    def vacuous(self, key: Key, step: int, note: str) -> None:
        """Enter something that the check could not have seen fail."""
        never = Tolerance("relative", 1.0, "")
        self.entries.setdefault(key, {})[step] = Entry(Error(0.0, 0.0, 1.0), 0, EPS[self.dtype], never, note=note)

    def names(self, stage: str, init: str, step: int, reference: Any, port: Any, unit: str = "") -> list[str]:
        """The names on both sides, in the reference's order; one that a side lacks is entered as a divergence."""
        for name in reference:
            if name not in port:
                self.refuse(Key(stage, name, init, unit), step, f"not there in {self.sides[1]}")
        for name in port:
            if name not in reference:
                self.refuse(Key(stage, name, init, unit), step, f"not there in {self.sides[0]}")
        return [name for name in reference if name in port]

    def judge(self) -> tuple[dict[str, StageResult], list[TensorResult], Divergence | None]:
        """All verdicts: by stage, by tensor, and the first comparison beyond its budget."""
        scales: dict[tuple, float] = defaultdict(float)
        for key, by_step in self.entries.items():
            for step, entry in by_step.items():
                if not entry.note and math.isfinite(entry.error.truth):
                    place = (key.stage, key.unit, key.init, step)
                    scales[place] = max(scales[place], entry.error.truth)

        tensors, verdicts = [], {}
        for key in sorted(self.entries, key=lambda k: STAGES.index(k.stage)):
            by_step = dict(sorted(self.entries[key].items()))
            before = Error(0.0, 0.0, 0.0)
            for step, entry in by_step.items():
                scale = scales[(key.stage, key.unit, key.init, step)]
                verdicts[key, step], before = judge_entry(key.stage, entry, self.spread, scale, before)
            tensors.append(tensor_result(key, by_step, [verdicts[key, step] for step in by_step]))
        many = {(k, i) for k, by_step in self.entries.items() for i, e in by_step.items() if e.many}
        of_stage = {stage: [verdicts[at] for at in many if at[0].stage == stage] for stage in STAGES}
        shifts = {stage: shift_of(stage, self.spread, found) for stage, found in of_stage.items()}
        stages = {stage: stage_result(stage, verdicts, many, bool(shifts[stage])) for stage in STAGES}
        both = first_divergence(verdicts, self.entries), first_shift(stages, shifts)
        first = min((d for d in both if d is not None), key=lambda d: STAGES.index(d.stage), default=None)
        return stages, tensors, first
