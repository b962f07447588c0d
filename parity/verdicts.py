"""The verdict on each comparison, tensor and stage of a ledger, and the first divergence among them."""

import math
import statistics

from parity.budget import BULK, MANY, SPREADS, Error, Spread, Verdict, allowed, judge
from parity.diagnosis import Neighbour, in_common
from parity.entries import INITS, Entry, Key
from parity.result import STAGES, Divergence, StageResult, Status, TensorResult, ratio_to_budget
from parity.rounding import fault_of


def judge_entry(stage: str, entry: Entry, spread: Spread, scale: float, before: Error) -> tuple[Verdict, Error]:
    """The verdict, and the relative errors of this step and all before it.

    A ratio of two errors says little when each is one number's: a small tensor is judged by the root mean square
    over the steps so far, beside that over the seeds.
    """
    if entry.note:
        wrong = entry.tolerance.kind == "exact"
        return Verdict("diverges" if wrong else "unchecked", math.inf if wrong else 0.0, 0.0, None, entry.note), before
    found, rounded, many = entry.error, entry.rounding, None
    if entry.tolerance.kind == "ratio" and entry.elements < MANY and found.truth > 0:
        before = before + found.scaled(1 / found.truth)
        found = before.scaled(found.truth / before.truth)
    if rounded is not None:
        many = allowed(stage, spread, rounded.elements, rounded.luck(entry.error.reference))
    whole = entry.scale * entry.seeds
    verdict = judge(found, entry.tolerance, entry.eps, max(scale, entry.scale), many and many.ratio, whole)
    if rounded is not None and entry.many and verdict.status == "agrees":
        own = entry.error.own / math.sqrt(rounded.elements)
        seen = fault_of(rounded, own, many.lean if many else math.inf, stage == "activations")
        verdict = verdict._replace(status="diverges", note=seen) if seen else verdict
    return verdict, before


def shift_of(stage: str, spread: Spread, verdicts: list[Verdict]) -> str:
    """How a stage is off as a whole, though each of its tensors is within budget; "" if it is not."""
    ratios = sorted(v.ratio for v in verdicts if v.ratio is not None and v.status != "unchecked")
    if stage not in BULK:
        spread = SPREADS["float32"]
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


def _badness(v: Verdict) -> tuple[bool, float, float]:
    return v.status == "diverges", ratio_to_budget(v.relative_l2, v.budget), v.relative_l2
