"""What the port's own training step returns after its optimizers: the new state, and the norms that it logs.

The stages before compute updates and parameters part by part, so a rounding between them would show in the trajectory
only.
"""

from collections.abc import Container

import numpy as np

from parity.budget import TOLERANCES, Tolerance
from parity.entries import Key
from parity.ledger import Ledger
from parity.side import Named, Stepped, TrainingState
from parity.stages import COPY, enter_copy, norm

# Both reach 9e-6 over eight seeds of gpt in bfloat16, where another program's float32 products in Newton-Schulz differ.
LOGGED = Tolerance("relative", 5e-5, "a norm that the step takes in float32, where its parameters are of that type")
SAME = Tolerance("relative", 5e-5, "the same operations on the same numbers, compiled into another program")
# As on a GPU, where one such matrix was 3.5e-3 apart.
NARROW = Tolerance("relative", 2**-6, "two programs that orthogonalize in bfloat16: four of its roundings")


def compare_logged(
    ledger: Ledger,
    init: str,
    before: TrainingState,
    reference: Stepped,
    port: Stepped,
    parts: TrainingState,
    labels: dict[str, str],
) -> None:
    """The norms that each side logs, as multiples of those of its own arrays: gradients, parameters, what is added.

    parts: as in `compare_real_step`; the port's updates are those that lead to it.
    """
    ours = shares(before, reference, reference.after, labels)
    theirs = shares(before, port, parts, labels)
    for name in ledger.names("update", init, before.step, ours, theirs, "logged"):
        stage = "clip" if name.startswith("leaf_norm") else "update"
        # torch's own norm of a million numbers is off by 1e-12 where most of them are alike (rows of tokens that a
        # batch lacks), since it rounds them all the same way; see `parity.serial`.
        exact = "gradients" if stage == "clip" else "update"
        tolerance = TOLERANCES["float64"][exact] if ledger.dtype == "float64" else LOGGED
        ledger.enter(Key(stage, name, init, "logged"), before.step, ours[name], theirs[name], tolerance=tolerance)


def shares(before: TrainingState, stepped: Stepped, after: TrainingState, labels: dict[str, str]) -> Named:
    """Every logged norm over the norm of the arrays that it is said to be of; 1 where both are zero."""
    own = {f"leaf_norm/{name}": norm([g]) for name, g in stepped.gradients.items() if g is not None}
    for label in set(labels.values()):
        of = [name for name in labels if labels[name] == label]
        start, end = ([np.asarray(side.weights[name], np.float64) for name in of] for side in (before, after))
        own[f"param_norm/{label}"] = norm(start)
        own[f"update_norm/{label}"] = norm([b - a for a, b in zip(start, end, strict=True)])
    return {
        name: np.float64(logged) / own[name] if own.get(name) else 1 + np.float64(logged)
        for name, logged in stepped.norms.items()
    }


def compare_real_step(
    ledger: Ledger, init: str, parts: TrainingState, port: Stepped, narrow: Container[str] = ()
) -> None:
    """The port's state after its step, beside `parts`: what its optimizers alone make of the gradients of that step.

    narrow: the parameters whose update is orthogonalized in bfloat16.
    """
    at, after = parts.step - 1, port.after
    tolerance = TOLERANCES["float64"]["parameters"] if ledger.dtype == "float64" else SAME
    for name in port.gradients:
        key = Key("parameters", f"{name} (real step)", init, "real")
        allowed = NARROW if name in narrow else tolerance
        ledger.enter(key, at, parts.weights[name], after.weights[name], tolerance=allowed)
    for name, moment in parts.moments.items():
        key = Key("parameters", f"{name} (real step)", init, f"real {name.partition('/')[0]}")
        ledger.enter(key, at, moment, after.moments[name], tolerance=COPY if moment.dtype.kind == "i" else tolerance)
    ledger.enter(Key("parameters", "step (real step)", init), at, parts.step, after.step, tolerance=COPY)
    keys = np.asarray(parts.key), np.asarray(after.key)
    enter_copy(ledger, Key("parameters", "key (real step)", init), at, *keys)


def compare_resumed(ledger: Ledger, init: str, step: int, saved: Named, restored: Named) -> None:
    """Every field of a checkpoint: what is read is what was saved, to the bit."""
    for name in ledger.names("trajectory", init, step, saved, restored, "resumed"):
        enter_copy(ledger, Key("trajectory", f"{name} (resumed)", init, "resumed"), step, saved[name], restored[name])
