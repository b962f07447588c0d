"""Trajectories: the port against the reference, and the reference against itself, over a whole run.

anchored: each step starts from the reference's state, so its error is that of one step. free: each side goes on from
its own state, so errors pile up. envelope: the reference from parameters perturbed by one ulp, the largest deviation of
several such runs; a port within ten times the envelope is as good as the reference run twice.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from parity.budget import EPS, TOLERANCES, TRAJECTORY_LOSS, Tolerance, relative
from parity.entries import Key
from parity.jax_side import JaxSide
from parity.ledger import Ledger
from parity.real_step import compare_resumed
from parity.reference import Reference, Run, Watched
from parity.result import Curve
from parity.side import Stepped, TrainingState
from twinstep.data import Data

FLOOR_ULPS = 4  # of the loss, or of a tensor's norm: what one more rounding may do where the envelope is smaller


def run_port(
    ledger: Ledger, init: str, side: JaxSide, state: TrainingState, data: Data, steps: int, watched: Sequence[int]
) -> Run:
    """The port's free run on its own batches.

    Halfway it saves a checkpoint, restores it and opens the input again: what a resume loses is entered, and shows in
    the second half. Of batches beyond those asked for one is taken, by which they are known.
    """
    run, half = Run(), steps // 2
    for first, last in ((0, half), (half, steps)):
        batches = islice(side.batches(data, state.step, state.step + last - first), last - first + 1)
        state = run.train(side, state, batches, watched)
        if last == half:
            resumed = side.resume(state)
            compare_resumed(ledger, init, half, resumed.saved, resumed.restored)
            state = resumed.state
    return run


def compare_runs(
    ledger: Ledger, init: str, reference: Reference, port: Run, anchored: dict[int, tuple[Watched, Stepped]]
) -> Curve:
    """Enter the losses of every step and the weights of the watched ones; returns the curves to draw.

    anchored: watched step -> the reference there, and the port's step from its state.
    """
    run, moved_runs = reference.run, reference.moved_runs
    ceiling = TRAJECTORY_LOSS if ledger.dtype == "float64" else None
    free = compare_losses(ledger, init, run.losses, port.losses, [moved.losses for moved in moved_runs], ceiling)
    for step, weights in run.weights.items():
        for name, array in weights.items():
            moved = [other.weights[step][name] for other in moved_runs]
            enter_weights(ledger, Key("trajectory", name, init, "free"), step, array, port.weights[step][name], moved)
    for step, (at, stepped) in anchored.items():
        for name, array in at.stepped.after.weights.items():
            key = Key("trajectory", f"{name} (anchored)", init, "anchored")
            moved = [others[name] for _, others in at.moved]
            enter_weights(ledger, key, step, array, stepped.after.weights[name], moved)

    return replace(
        free,
        anchored_steps=list(anchored),
        anchored_error=[relative(at.stepped.loss, stepped.loss) for at, stepped in anchored.values()],
        anchored_envelope=[max(relative(at.stepped.loss, x) for x, _ in at.moved) for at, _ in anchored.values()],
    )


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
