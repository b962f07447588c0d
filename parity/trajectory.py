"""Trajectories: the port against the reference, and the reference against itself, over a whole run.

anchored: each step starts from the reference's state, so its error is that of one step. free: each side goes on from
its own state, so errors pile up. envelope: the reference from parameters perturbed by one ulp, the largest deviation of
several such runs; a port within ten times the envelope is as good as the reference run twice.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from parity.budget import TRAJECTORY_LOSS, relative
from parity.entries import Key
from parity.envelope import compare_losses, enter_weights
from parity.jax_side import JaxSide
from parity.ledger import Ledger
from parity.real_step import compare_resumed
from parity.reference import Reference, Run, Watched
from parity.result import Curve
from parity.side import Stepped, TrainingState
from twinstep.data import Data


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
