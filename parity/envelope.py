"""How far a run of the reference is from itself when it begins one ulp away, and runs judged by that.

A port within ten times this envelope is as good as the reference run twice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.budget import EPS, TOLERANCES, Tolerance, relative
from parity.entries import Key
from parity.ledger import Ledger
from parity.result import Curve
from parity.side import Named

WATCHED = 10  # steps at which everything is compared, at most; losses are compared at every step
PERTURBATIONS = 3  # runs of the reference from parameters perturbed by one ulp
FLOOR_ULPS = 4  # of the loss, or of a tensor's norm: what one more rounding may do where the envelope is smaller


def watched_steps(steps: int) -> list[int]:
    """All of them, or the first three, the last and some between."""
    if steps <= WATCHED:
        return list(range(steps))
    return sorted({0, 1, 2, *np.linspace(3, steps - 1, WATCHED - 3).round().astype(int).tolist()})


def moved_by(arrays: Named, eps: float, seed: int) -> Named:
    """Every element of every array moved up or down by so much of itself, at random."""
    random = np.random.default_rng(seed)
    return {n: (w * (1 + eps * random.choice((-1.0, 1.0), w.shape))).astype(w.dtype) for n, w in arrays.items()}


def compare_losses(
    ledger: Ledger,
    init: str,
    ours: list[float],
    theirs: list[float],
    moved: list[list[float]],
    ceiling: Tolerance | None,
    least: Sequence[float] = (),
) -> Curve:
    """Enter the loss of every step of two free runs; returns the curves, without anchored steps.

    moved: losses of the reference from perturbed parameters. ceiling: of the budgets, however wide the envelope.
    least: the budget of each step's loss by itself, where its terms may cancel; the trajectory's is no smaller.
    """
    loss_eps = EPS["float64" if ledger.dtype == "float64" else "float32"]
    envelope = loss_envelope(ours, moved)
    budgets = [within(width, loss_eps, ceiling) for width in envelope]
    budgets = [t._replace(value=max(t.value, own)) for t, own in zip(budgets, least or [0.0] * len(ours), strict=True)]
    for step, losses in enumerate(zip(ours, theirs, strict=True)):
        a, b = map(np.float64, losses)
        ledger.enter(Key("trajectory", "loss", init, "loss"), step, a, b, tolerance=budgets[step])
    return Curve(
        init=init,
        steps=list(range(len(ours))),
        reference_loss=ours,
        port_loss=theirs,
        free_error=[relative(a, b) for a, b in zip(ours, theirs, strict=True)],
        envelope=envelope,
        free_budget=[tolerance.value for tolerance in budgets],
        anchored_steps=[],
        anchored_error=[],
        anchored_envelope=[],
    )


def loss_envelope(losses: list[float], others: list[list[float]]) -> list[float]:
    """The largest relative deviation of the others up to each step."""
    widest, envelope = 0.0, []
    for step, loss in enumerate(losses):
        widest = max([widest, *(relative(loss, other[step]) for other in others)])
        envelope.append(widest)
    return envelope


def within(envelope: float, eps: float, ceiling: Tolerance | None) -> Tolerance:
    """Ten times the envelope, but never more than the ceiling where there is one."""
    times = TOLERANCES["float32"]["trajectory"]
    value = times.value * max(envelope, FLOOR_ULPS * eps)
    return Tolerance("relative", value if ceiling is None else min(value, ceiling.value), times.reason)


def enter_weights(ledger: Ledger, key: Key, step: int, ours: Any, theirs: Any, moved: Sequence[Any]) -> None:
    """Enter one tensor beside those of the runs from perturbed parameters."""
    enter_within(ledger, key, step, ours, theirs, widest(ours, moved))


def enter_within(ledger: Ledger, key: Key, step: int, ours: Any, theirs: Any, envelope: float) -> None:
    """Enter one tensor: by the fixed figure in float64, by ten times its envelope elsewhere.

    Where the fixed figure is finer than the reference can repeat itself, it cannot be checked. So it is with weights
    whose gradient is rounding noise (queries and keys where every query sees one key): Muon makes updates of it.
    """
    if ledger.dtype != "float64":
        ledger.enter(key, step, ours, theirs, tolerance=within(envelope, EPS["float32"], None))
        return
    fixed = TOLERANCES["float64"]["trajectory"]
    if fixed.value < relative(ours, theirs) <= within(envelope, 0.0, None).value:
        ledger.vacuous(key, step, "the reference, perturbed by one ulp, differs from itself as much")
    else:
        ledger.enter(key, step, ours, theirs, tolerance=fixed)


def widest(ours: Any, moved: Sequence[Any]) -> float:
    """The envelope of one tensor: the largest deviation of the runs from perturbed parameters."""
    return max(relative(ours, other) for other in moved)
