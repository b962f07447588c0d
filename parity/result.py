"""What a check found: the dataclasses behind `parity.json`.

`parity.json` is `Result.to_json()`, one object:

    schema            1
    verdict           "agrees", "diverges", or "unchecked" where nothing at all, or a stage of `needed`, was compared
    sentence          the verdict in one sentence, for people
    notes             list of sentences to read with it (unchecked gradients first, then what was left out)
    not_run           list of {file, function, lines, whole}: functions of the port that the check imported but did not
                      run, wholly or in these lines
    idle              list of {number, why}: numbers whose change the check would not see
    first_divergence  null, or {stage, tensor, step, init, relative_l2, budget, note, hint, diagnosis, guess,
                      group, code}; hint: a likely cause, or ""; guess: how the port's numbers are wrong, where that is
                      certain, or ""
    stages            object keyed by stage name, in the order of STAGES; each {verdict, tensor, step, init,
                      relative_l2, budget, ratio, median_ratio, compared, unchecked, diverged, maximum_by_step, code}
    tensors           list of {stage, tensor, group, init, elements, steps, relative_l2, budget, ratio, status, note,
                      why_unchecked, diagnosis}
    curves            list of {init, steps, reference_loss, port_loss, free_error, envelope, free_budget,
                      anchored_steps, anchored_error, anchored_envelope}
    lines             null, or {torch, jax, operations, operands}: the first wrong line of either side, each null or
                      {file, first, last, function, exact}, and by side what is computed there, and from what
    needed            list of the stages without which silence proves nothing
    model, dtype, steps, seed, seeds, devices, seconds, command
    config            the configuration that was checked, as in a run's config.json
    environment       object of strings: versions, machine, and on what each side ran

A number that is not finite (a NaN in the port, a division by a zero reference) is null. `relative_l2` is
||port - truth|| / ||truth||, where the truth is the reference itself in float64 and, in float32 and bfloat16, the
reference computed in float64. `budget` is the largest `relative_l2` allowed. `ratio` is
err(port, truth) / err(reference, truth), null in float64. `unchecked` counts comparisons that could not have failed.
In `tensors`, `relative_l2`, `budget`, `ratio` and `status` are lists with one entry per entry of `steps`. `note` is of
the first step that diverges, `why_unchecked` of the first that is unchecked. `diagnosis` is null, or {step, index,
reference, port, norm_ratio, cosine, guess}: of the first step that diverges and the first seed, both sides' values
where they are furthest apart, ||port|| / ||reference|| and the cosine between them (null beside a zero). `code` is
{torch, jax}, each "file function", or {} where the code is a user's own.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

from parity.lines.line import Line, Lines

STAGES = (
    "data",
    "weights",
    "schedule",
    "activations",
    "loss",
    "gradients",
    "clip",
    "update",
    "parameters",
    "trajectory",
    "evaluation",
    "generation",
)

Status = Literal["agrees", "diverges", "unchecked"]


NO_PART = "it has no part"  # why a number is idle: nothing that is computed depends on it


@dataclass(frozen=True)
class NotRun:
    """A function of which some lines did not run, or none."""

    file: str  # relative to the package's folder
    function: str  # "Class.method", "outer.inner"
    lines: list[int]  # statements that did not run
    whole: bool  # none ran


@dataclass(frozen=True)
class Idle:
    """A number, and why a check would not see it change."""

    number: str  # a flag, or the name of a constant of torch_ref
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """How a port's tensor is wrong: of the first seed at one step, see the module's docstring."""

    step: int
    index: list[int]  # where the two are furthest apart
    reference: float  # both values there
    port: float
    norm_ratio: float | None
    cosine: float | None
    guess: str = ""


@dataclass(frozen=True)
class TensorResult:
    """One tensor of one stage, from one initialization, at each step at which it was compared."""

    stage: str
    tensor: str  # torch's name; activations of later micro-steps end in " [k]"
    group: str  # the optimizer group of a parameter, "" elsewhere
    init: str  # "nonzero", "native" or "given"
    elements: int
    steps: list[int]
    relative_l2: list[float]
    budget: list[float]
    ratio: list[float] | None
    status: list[Status]
    note: str = ""  # of the first step that diverges
    why_unchecked: str = ""  # of the first step that is unchecked
    diagnosis: Diagnosis | None = None  # of the first step that diverges


@dataclass(frozen=True)
class StageResult:
    """A stage in one line: the worst tensor is the one with the largest relative_l2 / budget."""

    verdict: Status
    tensor: str
    step: int
    init: str
    relative_l2: float
    budget: float
    ratio: float | None
    median_ratio: float | None
    compared: int  # (tensor, step, init) triples; the unchecked ones are not among them
    unchecked: int
    diverged: int
    maximum_by_step: dict[int, float]  # step -> largest relative_l2 / budget
    code: dict[str, str] = field(default_factory=dict)  # see `parity.places`


@dataclass(frozen=True)
class Divergence:
    """The first comparison beyond its budget: by stage, then initialization, step, and place in the execution."""

    stage: str
    tensor: str
    step: int
    init: str
    relative_l2: float
    budget: float
    note: str = ""
    hint: str = ""  # a likely cause and its mend, a sentence
    diagnosis: Diagnosis | None = None
    guess: str = ""  # the diagnosis's, and what it has in common with its neighbours
    group: str = ""  # the optimizer group of a parameter
    code: dict[str, str] = field(default_factory=dict)  # what computes the tensor, see `parity.places`


@dataclass(frozen=True)
class Curve:
    """Losses of a run of N steps from one initialization; every error is relative to the reference's loss.

    free: errors pile up over the run. anchored: each step starts from the reference's state. envelope: the reference
    against itself from parameters perturbed by one ulp, the largest of several seeds and of the steps before.
    """

    init: str
    steps: list[int]
    reference_loss: list[float]
    port_loss: list[float]
    free_error: list[float]
    envelope: list[float]
    free_budget: list[float]
    anchored_steps: list[int]
    anchored_error: list[float]
    anchored_envelope: list[float]


@dataclass(frozen=True)
class Result:
    """A whole check; see the module's docstring for the JSON."""

    model: str
    dtype: str
    steps: int
    seed: int
    seeds: int
    devices: int
    stages: dict[str, StageResult]
    tensors: list[TensorResult]
    curves: list[Curve]
    first_divergence: Divergence | None
    notes: list[str] = field(default_factory=list)
    not_run: list[NotRun] = field(default_factory=list)
    idle: list[Idle] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0
    needed: list[str] = field(default_factory=list)
    lines: Lines | None = None

    @property
    def verdict(self) -> Status:
        """Diverges if any stage does; of nothing compared, unchecked: silence proves nothing."""
        if self.first_divergence is not None:
            return "diverges"
        return "agrees" if self.compared and not self.silent else "unchecked"

    @property
    def silent(self) -> list[str]:
        """The stages of `needed` in which nothing could be compared."""
        return [name for name in self.needed if not self.stages[name].compared]

    @property
    def compared(self) -> int:
        """Comparisons that could have failed, over all stages."""
        return sum(stage.compared for stage in self.stages.values())

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        d = self.first_divergence
        if d is None:
            unchecked = sum(stage.unchecked for stage in self.stages.values())
            rest = f"; {unchecked} could not be checked" if unchecked else ""
            if not self.compared:
                return f"Nothing of the JAX port of {self.model} could be compared with PyTorch in {self.dtype}{rest}."
            if self.silent:
                return (
                    f"The JAX port of {self.model} is unchecked in {self.dtype}: nothing of the stages "
                    f"{', '.join(self.silent)} could be compared{rest}."
                )
            return (
                f"The JAX port of {self.model} agrees with PyTorch in {self.dtype}: "
                f"{self.compared} comparisons over {self.steps} steps are within budget{rest}."
            )
        if d.note:
            why = d.note
        elif d.budget == 0:
            why = f"relative error {d.relative_l2:.1e} where it must be exact"
        else:
            why = f"relative error {d.relative_l2:.1e}, budget {d.budget:.1e}"
        why += f"; {d.guess}" if d.guess else ""
        if self.lines is not None and str(self.lines):
            why += f"; first wrong: {self.lines}"
        elif d.code:
            why += f"; see {d.code['jax']}"
        return (
            f"The JAX port of {self.model} diverges from PyTorch in {self.dtype}, first at stage {d.stage}, "
            f"tensor {d.tensor}, step {d.step} ({d.init} initialization): {why}.{d.hint and ' ' + d.hint}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes null."""
        head = {"schema": 1, "verdict": self.verdict, "sentence": self.sentence}
        return _finite({**head, **dataclasses.asdict(self)})

    def write(self, folder: Path | str) -> list[Path]:
        """The reports of `python -m parity check` into a folder: parity.json, report.html and figures; their paths."""
        from parity.report import write_report  # it draws, which takes a second to import

        return write_report(self, folder)

    def raise_unless_agrees(self) -> None:
        """For a test: raises AssertionError with the sentence unless the verdict is "agrees"."""
        if self.verdict != "agrees":
            raise AssertionError("\n".join([self.sentence, *self.notes]))

    def _repr_html_(self) -> str:
        """For a notebook: the report, in a frame of its own, whose style stays there."""
        from parity.report.page import report_page

        return f'<iframe srcdoc="{escape(report_page(self))}" style="width: 100%; height: 40em; border: 0"></iframe>'

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Result":
        """The inverse of `to_json`; null becomes infinity where a number must stand."""
        values = {k: v for k, v in values.items() if k not in ("schema", "verdict", "sentence")}
        first, lines = values.pop("first_divergence"), values.pop("lines")
        stages = {name: StageResult(**_restore(stage)) for name, stage in values.pop("stages").items()}
        return Result(
            **values
            | {"tensors": [TensorResult(**_diagnosed(_restore(t))) for t in values["tensors"]]}
            | {"curves": [Curve(**_restore(c)) for c in values["curves"]]}
            | {"not_run": [NotRun(**x) for x in values["not_run"]]}
            | {"idle": [Idle(**x) for x in values["idle"]]},
            stages=stages,
            lines=None if lines is None else lines_of(lines),
            first_divergence=None if first is None else Divergence(**_diagnosed(_restore(first))),
        )


def lines_of(values: dict[str, Any]) -> Lines:
    """The inverse of what `to_json` makes of it."""
    both = {side: None if values[side] is None else Line(**values[side]) for side in ("torch", "jax")}
    return Lines(**{**values, **both})


def ratio_to_budget(relative_l2: float, budget: float) -> float:
    """How much of its budget an error takes; with no budget, 0 or infinity."""
    if budget > 0:
        return relative_l2 / budget
    return 0.0 if relative_l2 == 0 else math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _diagnosed(values: dict[str, Any]) -> dict[str, Any]:
    found = values["diagnosis"]
    return {**values, "diagnosis": None if found is None else Diagnosis(**found)}


def _restore(values: dict[str, Any]) -> dict[str, Any]:
    def number(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [math.inf if v is None else v for v in value]
        if value is None and key in ("relative_l2", "budget"):
            return math.inf
        if key == "maximum_by_step":
            return {int(step): math.inf if v is None else v for step, v in value.items()}
        return value

    return {key: number(key, value) for key, value in values.items()}
