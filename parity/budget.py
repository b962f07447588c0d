"""How far a port may be from the truth: the one table of tolerances, and the arithmetic of a comparison.

In float64 the truth is the reference itself and the budget a fixed relative L2 error, which separates algebra from
rounding. In float32 and bfloat16 the truth is the reference computed in float64, and the budget is a multiple of the
reference's own error: a port is as good as the original when err(port, truth) / err(reference, truth) is near one,
whatever the absolute figure. In float32 the reference's own error is the larger of two: as it runs, and with serial
products (`parity.serial`). Which of them torch's BLAS comes near is the processor's choice.

How near one a ratio must be depends on how many numbers it is made of (`Spread`), and on many numbers more can be seen
than the size of their error (`parity.rounding`).
"""

import math
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from parity.result import Status

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}

MANY = 1000  # numbers: of fewer the ratio of two errors is luck
MOST_LUCK = 0.2  # beyond which it is so of any number of them: a few make up the error
SIGMAS = 6

# The reference's error in few numbers can be small by luck, in a single one down to zero: it counts as at least this
# many ulp of the tensor's norm. So it does in clip, update and parameters, whose numbers share the rounding of one
# factor (a rate, a momentum, a bias correction). A tensor of the reference below this many ulp of the stage's largest
# is rounding noise: unchecked, unless the reference's error in it is smaller still.
FLOOR_ULPS = 2
ROUNDED_ONCE = 0.2  # ulp of the norm: the error of many numbers of which each is rounded once


class Tolerance(NamedTuple):
    """`value` is a relative L2 error ("relative"), a ratio of errors ("ratio"), or a multiple of the envelope."""

    kind: str  # "exact", "relative", "ratio" or "envelope"
    value: float
    reason: str


class Spread(NamedTuple):
    """How far the errors of many numbers may be from the reference's, besides what is luck among so many."""

    ratio: float  # of an activation's two RMS errors
    median: float  # of all ratios of a stage
    tenth: float  # that a tenth of all ratios of a stage may reach
    lean: float  # mean signed error of an activation beyond the reference's own, in RMS errors of the reference
    reason: str


# Measured in clean runs of the four models on an AMD EPYC, from 2 to 8 seeds. In bfloat16 two squared errors are apart
# by at most 3 standard deviations, a stage's median and tenth are at most 1.00, and a mean error takes half of its
# limit. In float32 the largest ratio is 1.8, the largest median 1.00, the largest tenth 1.12.
SPREADS = {
    "float32": Spread(4.0, 1.5, 2.5, 0.25, "two BLASes add terms in their own order, so their errors are independent"),
    "bfloat16": Spread(
        1.01, 1.03, 1.04, 0.05, "products are added in float32, and both sides round at the same places, if at all"
    ),
}
BULK = ("activations", "gradients")  # the stages whose numbers are rounded each by itself

_BYTES = Tolerance("exact", 0.0, "both trainers read one stream of batches: identical to the byte")
_COPIES = Tolerance("exact", 0.0, "the bridge copies numbers, it computes none")
_RATIO = Tolerance(
    "ratio", 4.0, "rounding in another order; the ratio of two RMS errors of eight seeds stays below 3.6"
)
_ENVELOPE = Tolerance("envelope", 10.0, "the reference, run again one ulp away, differs from itself by the envelope")

TOLERANCES: dict[str, dict[str, Tolerance]] = {
    "float64": {
        "data": _BYTES,
        "weights": _COPIES,
        "schedule": Tolerance("relative", 1e-14, "the same few products of float64 numbers in another order"),
        "activations": Tolerance("relative", 1e-13, "sums of at most thousands of terms, some hundred layers deep"),
        "loss": Tolerance("relative", 1e-13, "a mean over the activations' error"),
        "gradients": Tolerance("relative", 1e-11, "as activations, with sums over all targets that partly cancel"),
        "clip": Tolerance("relative", 1e-13, "one norm and one product of the reference's own gradients"),
        "update": Tolerance(
            "relative", 1e-10, "taken as a difference of parameters, up to 1e4 times the update's size"
        ),
        "parameters": Tolerance("relative", 1e-12, "one update added to the reference's own parameters"),
        "trajectory": Tolerance("relative", 1e-10, "rounding grown over the steps; the envelope measures its growth"),
        "evaluation": Tolerance("relative", 1e-13, "sums over the activations' error"),
        "generation": Tolerance("relative", 1e-13, "as activations: the same sums over cached keys"),
    },
    "float32": {
        "data": _BYTES,
        "weights": _COPIES,
        "schedule": Tolerance(
            "relative", 1e-6, "JAX traces the schedule in float32, torch computes it in Python floats"
        ),
        **dict.fromkeys(("activations", "loss", "gradients", "clip", "update", "parameters"), _RATIO),
        **dict.fromkeys(("evaluation", "generation"), _RATIO),
        "trajectory": _ENVELOPE,
    },
}
TOLERANCES["bfloat16"] = TOLERANCES["float32"]  # the schedule is float32 there too

TRAJECTORY_LOSS = Tolerance("relative", 1e-11, "float64 losses of one run in two frameworks, after up to 200 steps")


@dataclass(frozen=True)
class Error:
    """Squared L2 norms, in float64, of one comparison; they add up over seeds."""

    port: float  # ||port - truth||^2
    reference: float  # ||reference - truth||^2
    truth: float  # ||truth||^2
    serial: float = 0.0  # ||reference with serial products - truth||^2, of the seeds where it is known
    serial_truth: float = 0.0  # ||truth||^2 of these seeds

    def __add__(self, other: "Error") -> "Error":
        return Error(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def scaled(self, factor: float) -> "Error":
        """All norms times the factor's root."""
        return Error(*(factor * x for x in astuple(self)))

    @property
    def own(self) -> float:
        """The reference's own error, not squared: the larger of the two."""
        serial = self.truth * self.serial / self.serial_truth if self.serial_truth else 0.0
        return math.sqrt(max(self.reference, serial))


def error(reference: np.ndarray, port: np.ndarray, truth: np.ndarray | None, serial: np.ndarray | None = None) -> Error:
    """The norms; without a truth the reference is the truth. serial: the reference with serial products."""
    wide_port, wide_reference = np.asarray(port, np.float64), np.asarray(reference, np.float64)
    wide_truth = wide_reference if truth is None else np.asarray(truth, np.float64)
    found = Error(squared(wide_port - wide_truth), squared(wide_reference - wide_truth), squared(wide_truth))
    if serial is not None:
        found = replace(found, serial=squared(np.asarray(serial, np.float64) - wide_truth), serial_truth=found.truth)
    return found


def squared(x: np.ndarray) -> float:
    """||x||^2 of a float64 array of any shape.

    By NumPy's own sum: `vdot` and `linalg.norm` go to BLAS, whose threads wait for each other on a busy CPU.
    """
    with np.errstate(over="ignore"):
        return float(np.sum(np.square(x)))


def relative(a: Any, b: Any) -> float:
    """||b - a|| / ||a||; 0 for equal arrays, so for two zeros."""
    found = error(a, b, None)
    if found.port == 0:
        return 0.0
    return math.sqrt(found.port / found.truth) if found.truth else math.inf


class Verdict(NamedTuple):
    """One comparison judged."""

    status: Status
    relative_l2: float
    budget: float
    ratio: float | None
    note: str = ""


class Allowed(NamedTuple):
    """What is allowed to an error of many numbers."""

    ratio: float
    lean: float


def allowed(stage: str, spread: Spread, numbers: int, luck: float) -> Allowed | None:
    """Of the error of so many numbers at a stage; None where the ratio is luck, or the numbers share a rounding.

    luck: of the squared errors, see `parity.rounding.Rounding.luck`. Those of a gradient share the errors of the
    activations that it is made of: they lean more, and their squares too go one way.
    """
    if stage not in BULK or numbers < MANY or luck > MOST_LUCK:
        return None
    own = 1 if stage == "activations" else 4
    most = TOLERANCES["float32"][stage].value
    ratio = math.sqrt((1 + own * (spread.ratio - 1)) ** 2 + SIGMAS * luck)
    return Allowed(min(most, ratio), own * spread.lean + 4 / math.sqrt(numbers))


def judge(
    found: Error, tolerance: Tolerance, eps: float, scale: float, allowed: float | None = None, whole: float = 0.0
) -> Verdict:
    """Is the port within its budget?

    eps: the spacing at 1 of the tensor's type. scale: squared norm of the largest tensor of the same kind, stage and
    step. allowed: the largest ratio of two errors of many numbers; None for few. whole: squared norm of that from which
    the numbers were subtracted, whose rounding they have. "unchecked" where a port of zeros would have passed too.
    """
    norm = math.sqrt(found.truth)
    if not math.isfinite(norm):
        return Verdict("unchecked", math.inf, 0.0, None, "the reference is not finite")
    port = math.sqrt(found.port) if found.port >= 0 else math.inf  # NaN compares false
    floor = FLOOR_ULPS if allowed is None else ROUNDED_ONCE
    own = max(found.own, floor * eps * max(norm, math.sqrt(whole)))
    most = (allowed or tolerance.value) * own
    noise = FLOOR_ULPS * eps * math.sqrt(scale)
    if tolerance.kind != "exact" and norm <= noise and (allowed is None or most >= norm):
        if port <= noise:
            return Verdict("unchecked", 0.0, 0.0, None, "the reference is zero, or noise")
        return Verdict("diverges", math.inf, 0.0, None, "not zero, as the reference is")
    if norm == 0:
        return Verdict("agrees" if port == 0 else "diverges", 0.0 if port == 0 else math.inf, 0.0, None)
    if tolerance.kind == "ratio":
        budget, ratio = most / norm, port / own
    else:
        budget, ratio = tolerance.value, None
    if budget >= 1:
        return Verdict("unchecked", port / norm, budget, ratio, "the budget is as large as the tensor")
    return Verdict("agrees" if port <= budget * norm else "diverges", port / norm, budget, ratio)
