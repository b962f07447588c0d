"""Every comparison of a check, entered as it is made, judged at the end."""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from parity.budget import (
    BULK,
    EPS,
    MANY,
    MOST_LUCK,
    SPREADS,
    TOLERANCES,
    Error,
    Spread,
    Tolerance,
    Verdict,
    allowed,
    error,
    judge,
)
from parity.comparable import unlike
from parity.diagnosis import Neighbour, diagnose, in_common, largest_rounding, worth_a_diagnosis
from parity.result import STAGES, Diagnosis, Divergence, StageResult, Status, TensorResult, ratio_to_budget
from parity.rounding import Rounding, fault_of, rounding

GIVEN = "given"  # from the user's own weights
INITS = ("nonzero", "native", GIVEN)  # the order in which they are checked, and blamed


class Key(NamedTuple):
    """One tensor of one stage from one initialization. `unit` groups what can be compared in size."""

    stage: str
    tensor: str
    init: str
    unit: str = ""
    group: str = ""


@dataclass
class Entry:
    """One key at one step, over all seeds."""

    error: Error
    elements: int
    eps: float
    tolerance: Tolerance
    scale: float = 0.0  # squared
    seeds: int = 1
    note: str = ""
    diagnosis: Diagnosis | None = None  # of the first seed, where rounding does not explain the error
    rounding: Rounding | None = None  # where errors are compared as a ratio

    @property
    def many(self) -> bool:
        """Whether the ratio of the errors, over all seeds, is made of so many numbers that it is no luck."""
        luck = self.rounding.luck(self.error.reference) if self.rounding else 0.0
        return self.elements * self.seeds >= MANY and luck <= MOST_LUCK


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
        if (why := unlike(reference, port, any_type=tolerance.kind == "exact")) is not None:
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
                self.refuse(Key(stage, name, init, unit), step, "not there in JAX")
        for name in port:
            if name not in reference:
                self.refuse(Key(stage, name, init, unit), step, "not there in torch")
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
                verdicts[key, step], before = self._judge_entry(key.stage, entry, scale, before)
            tensors.append(tensor_result(key, by_step, [verdicts[key, step] for step in by_step]))
        many = {(k, i) for k, by_step in self.entries.items() for i, e in by_step.items() if e.many}
        shifts = {stage: self._shift(stage, [verdicts[at] for at in many if at[0].stage == stage]) for stage in STAGES}
        stages = {stage: stage_result(stage, verdicts, many, bool(shifts[stage])) for stage in STAGES}
        both = first_divergence(verdicts, self.entries), first_shift(stages, shifts)
        first = min((d for d in both if d is not None), key=lambda d: STAGES.index(d.stage), default=None)
        return stages, tensors, first

    def _judge_entry(self, stage: str, entry: Entry, scale: float, before: Error) -> tuple[Verdict, Error]:
        """The verdict, and the relative errors of this step and all before it.

        A ratio of two errors says little when each is one number's: a small tensor is judged by the root mean square
        over the steps so far, beside that over the seeds.
        """
        if entry.note:
            wrong = entry.tolerance.kind == "exact"
            return Verdict(
                "diverges" if wrong else "unchecked", math.inf if wrong else 0.0, 0.0, None, entry.note
            ), before
        found, rounded, many = entry.error, entry.rounding, None
        if entry.tolerance.kind == "ratio" and entry.elements < MANY and found.truth > 0:
            before = before + found.scaled(1 / found.truth)
            found = before.scaled(found.truth / before.truth)
        if rounded is not None:
            many = allowed(stage, self.spread, rounded.elements, rounded.luck(entry.error.reference))
        verdict = judge(found, entry.tolerance, entry.eps, max(scale, entry.scale), many and many.ratio)
        if rounded is not None and entry.many and verdict.status == "agrees":
            own = entry.error.own / math.sqrt(rounded.elements)
            seen = fault_of(rounded, own, many.lean if many else math.inf, stage == "activations")
            verdict = verdict._replace(status="diverges", note=seen) if seen else verdict
        return verdict, before

    def _shift(self, stage: str, verdicts: list[Verdict]) -> str:
        """How a stage is off as a whole, though each of its tensors is within budget; "" if it is not."""
        ratios = sorted(v.ratio for v in verdicts if v.ratio is not None and v.status != "unchecked")
        spread = self.spread if stage in BULK else SPREADS["float32"]
        if not ratios:
            return ""
        median, tenth = statistics.median(ratios), ratios[-1 - len(ratios) // 10]
        if median > spread.median:
            return f"the median error ratio of the stage is {median:.3f}, more than {spread.median}"
        if stage in BULK and tenth > spread.tenth:
            return f"a tenth of the error ratios of the stage are above {tenth:.3f}, more than {spread.tenth}"
        return ""


def tensor_result(key: Key, by_step: dict[int, Entry], verdicts: list[Verdict]) -> TensorResult:
    """One key's verdicts, step by step."""
    ratios = [v.ratio for v in verdicts if v.ratio is not None]
    diagnoses = [entry.diagnosis for entry in by_step.values()]
    return TensorResult(
        stage=key.stage,
        tensor=key.tensor,
        group=key.group,
        init=key.init,
        elements=max(entry.elements for entry in by_step.values()),
        steps=list(by_step),
        relative_l2=[v.relative_l2 for v in verdicts],
        budget=[v.budget for v in verdicts],
        ratio=ratios if len(ratios) == len(verdicts) else None,
        status=[v.status for v in verdicts],
        note=next((v.note for v in verdicts if v.status == "diverges"), ""),
        why_unchecked=next((v.note for v in verdicts if v.status == "unchecked"), ""),
        diagnosis=next((found for found, v in zip(diagnoses, verdicts, strict=True) if v.status == "diverges"), None),
    )


def stage_result(
    stage: str, verdicts: dict[tuple[Key, int], Verdict], many: set[tuple[Key, int]], shifted: bool
) -> StageResult:
    """The stage's worst comparison and its counts. The median ratio is over `many`: of few numbers it is luck.

    shifted: whether the stage diverges as a whole.
    """
    mine = {at: v for at, v in verdicts.items() if at[0].stage == stage}
    checked = {at: v for at, v in mine.items() if v.status != "unchecked"}
    ratios = [v.ratio for at, v in checked.items() if v.ratio is not None and at in many]
    diverged = sum(v.status == "diverges" for v in checked.values())
    by_step: dict[int, float] = {}
    for (_, step), v in checked.items():
        by_step[step] = max(by_step.get(step, 0.0), ratio_to_budget(v.relative_l2, v.budget))
    median = statistics.median(ratios) if ratios else None
    if diverged or shifted:
        verdict: Status = "diverges"
    else:
        verdict = "agrees" if checked else "unchecked"
    if checked:
        (key, step), worst = max(checked.items(), key=lambda item: _badness(item[1]))
    else:
        key, step, worst = Key(stage, "", ""), 0, Verdict("unchecked", 0.0, 0.0, None)
    return StageResult(
        verdict=verdict,
        tensor=key.tensor,
        step=step,
        init=key.init,
        relative_l2=worst.relative_l2,
        budget=worst.budget,
        ratio=worst.ratio,
        median_ratio=median,
        compared=len(checked),
        unchecked=len(mine) - len(checked),
        diverged=diverged,
        maximum_by_step=dict(sorted(by_step.items())),
    )


def first_divergence(
    verdicts: dict[tuple[Key, int], Verdict], entries: dict[Key, dict[int, Entry]]
) -> Divergence | None:
    """By stage, initialization and step; within these by place in the execution, which is the order of the keys."""
    bad = [(at, v) for at, v in verdicts.items() if v.status == "diverges"]
    if not bad:
        return None
    (key, step), v = min(
        bad, key=lambda item: (STAGES.index(item[0][0].stage), INITS.index(item[0][0].init), item[0][1])
    )
    of_its_kind = key._replace(tensor="", group="")

    def neighbour(key: Key) -> Neighbour:
        found = entries[key][step].diagnosis
        return Neighbour(key.group, verdicts[key, step].status, found.guess if found else "")

    beside = [neighbour(k) for k, s in verdicts if s == step and k._replace(tensor="", group="") == of_its_kind]
    return Divergence(
        key.stage,
        key.tensor,
        step,
        key.init,
        v.relative_l2,
        v.budget,
        v.note,
        diagnosis=entries[key][step].diagnosis,
        guess=in_common(neighbour(key), beside),
        group=key.group,
    )


def first_shift(stages: dict[str, StageResult], shifts: dict[str, str]) -> Divergence | None:
    """A stage whose tensors are all within budget but together further off than the reference is, as `shifts` says."""
    for name, stage in stages.items():
        if shifts[name]:
            place = stage.tensor, stage.step, stage.init
            return Divergence(name, *place, stage.relative_l2, stage.budget, shifts[name])
    return None


def _badness(v: Verdict) -> tuple[float, float]:
    return ratio_to_budget(v.relative_l2, v.budget), v.relative_l2
