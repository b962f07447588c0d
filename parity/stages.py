"""The stages of one check, each a comparison entered in the ledger. Their names and order are `result.STAGES`.

Everything but the trajectory is local: each stage starts from what the reference had before it (its state, and for
clip, update and parameters its gradients), so an error is seen where it arises and not where it arrives.
"""

from collections.abc import Iterable

import numpy as np

from parity.budget import EPS, TOLERANCES, Tolerance, squared
from parity.entries import Key
from parity.ledger import Ledger
from parity.scan_names import by_layer
from parity.side import Batch, Captured, Differentiated, Named, Optimized, Stepped, TrainingState

NONE = Tolerance("exact", 0.0, "a group without decay, a table without bytes: zero is the right value")
COPY = Tolerance("exact", 0.0, "a number that is carried on, not computed")


def compare_data(ledger: Ledger, init: str, step: int, reference: Batch, port: Batch) -> None:
    """Names, shapes, kinds of number, and every value."""
    for name in ledger.names("data", init, step, reference, port):
        kinds = reference[name].dtype.kind, port[name].dtype.kind
        if kinds[0] != kinds[1]:
            ledger.refuse(Key("data", name, init), step, f"{reference[name].dtype} in torch, {port[name].dtype} in JAX")
        else:
            ledger.enter(Key("data", name, init), step, reference[name], port[name])


def compare_weights(ledger: Ledger, init: str, step: int, reference: Named, port: Named) -> None:
    """Names, shapes, dtypes and every value of parameters and buffers after the bridge."""
    for name in ledger.names("weights", init, step, reference, port):
        enter_copy(ledger, Key("weights", name, init), step, reference[name], port[name])


def enter_copy(ledger: Ledger, key: Key, step: int, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Enter what must be equal in type and in every value."""
    if ours.dtype != theirs.dtype:
        ledger.refuse(key, step, f"{ours.dtype} in torch, {theirs.dtype} in JAX")
    else:
        ledger.enter(key, step, ours, theirs, tolerance=COPY)


def compare_schedule(ledger: Ledger, init: str, reference: Named, port: Named) -> None:
    """Every rate, decay and momentum at every step of the run, relative to the largest of its curve."""
    allowed = TOLERANCES[ledger.dtype]["schedule"]
    for name in ledger.names("schedule", init, 0, reference, port):
        if np.shape(port[name]) != reference[name].shape:
            ledger.enter(Key("schedule", name, init, name), 0, reference[name], port[name])
            continue
        peak = np.abs(reference[name]).max()
        for step, (ours, theirs) in enumerate(zip(reference[name], port[name], strict=True)):
            if ours == 0:
                tolerance = NONE
            else:
                tolerance = Tolerance(allowed.kind, allowed.value * peak / abs(ours), allowed.reason)
            ledger.enter(Key("schedule", name, init, name), step, ours, theirs, tolerance=tolerance)


def compare_activations(
    ledger: Ledger, init: str, step: int, reference: Captured, port: Captured, truth: Captured, serial: Captured
) -> None:
    """Every activation in the order of the forward pass, then the gradient of each in that of the backward pass."""
    a, t, s = reference.activations, truth.activations, serial.activations
    b = by_layer(a, port.activations)
    for name in ledger.names("activations", init, step, a, b):
        ledger.enter(Key("activations", name, init), step, a[name], b[name], t[name], s.get(name))
    a, t, s = reference.gradients, truth.gradients, serial.gradients
    b = by_layer(a, port.gradients)
    for name in backwards(ledger.names("gradients", init, step, a, b, "activation")):
        ledger.enter(Key("gradients", f"d {name}", init, "activation"), step, a[name], b[name], t[name], s.get(name))


def backwards(names: list[str]) -> list[str]:
    """Micro-step by micro-step, each from its end to its beginning."""
    passes: dict[str, list[str]] = {}
    for name in names:
        passes.setdefault(name.partition(" [")[2], []).append(name)
    return [name for one in passes.values() for name in reversed(one)]


def compare_step(
    ledger: Ledger, init: str, step: int, reference: Stepped, port: Stepped, truth: Stepped, serial: Differentiated
) -> None:
    """What the real training step reports: rate, loss, gradient of every parameter, and its norm before clipping."""
    rates = np.float64(reference.learning_rate), np.float64(port.learning_rate)
    ledger.enter(Key("schedule", "logged learning_rate", init, "logged"), step, *rates)
    ledger.enter(Key("loss", "loss", init), step, reference.loss, port.loss, truth.loss, serial.loss)
    for name in ledger.names("gradients", init, step, reference.gradients, port.gradients):
        arrays = (side.gradients.get(name) for side in (reference, port, truth, serial))
        ledger.enter(Key("gradients", name, init, "parameter"), step, *arrays)
    norm = Key("clip", "global norm before", init, "norm")
    tolerance = TOLERANCES[ledger.dtype]["gradients"]  # of the port's own gradients
    norms = (side.grad_norm for side in (reference, port, truth, serial))
    ledger.enter(norm, step, *norms, tolerance=tolerance)


def compare_optimizers(
    ledger: Ledger,
    init: str,
    before: TrainingState,
    gradients: Named,
    reference: Optimized,
    port: Optimized,
    truth: Optimized,
    labels: dict[str, str],
) -> None:
    """Clipping, updates, optimizer state and new parameters, all from the reference's gradients."""
    step = before.step
    eps = EPS[str(next(iter(gradients.values())).dtype)]
    for name in ledger.names("clip", init, step, reference.clipped, port.clipped):
        key = Key("clip", name, init, "gradient", labels[name])
        ledger.enter(key, step, reference.clipped[name], port.clipped[name], truth.clipped[name])
    # A factor of 1 is no clipping, and then nothing was compared: hence the distance from 1, and its own rounding.
    a, b, t = (norm_ratio(side.clipped, gradients) - 1 for side in (reference, port, truth))
    allowed = TOLERANCES[ledger.dtype]["clip"]
    if allowed.kind == "relative" and a != 0:
        allowed = Tolerance("relative", allowed.value / min(float(abs(a)), 1.0), allowed.reason)
    ledger.enter(Key("clip", "factor - 1", init, "factor"), step, a, b, t, tolerance=allowed, eps=eps, scale=1.0)

    for name in gradients:
        updates = [
            side.after.weights[name].astype(np.float64) - before.weights[name] for side in (reference, port, truth)
        ]
        ledger.enter(Key("update", name, init, "update", labels[name]), step, *updates, eps=eps)
    ours, theirs, true = (side.after.moments for side in (reference, port, truth))
    for name in {**ours, **theirs}:
        kind, _, of = name.partition("/")
        key = Key("update", name, init, kind, labels.get(of, of))
        if name in ours and name in theirs:
            ledger.enter(key, step, ours[name], theirs[name], true[name])
        else:
            ledger.vacuous(key, step, f"no such state was found in {'JAX' if name in ours else 'torch'}: not compared")
    for name in gradients:
        a, b, t = (side.after.weights[name] for side in (reference, port, truth))
        ledger.enter(Key("parameters", name, init, "parameter", labels[name]), step, a, b, t)


def note_idle_decay(
    ledger: Ledger, init: str, before: TrainingState, reference: Optimized, labels: dict[str, str], schedule: Named
) -> None:
    """A decay whose share of the update is below the update's tolerance could be missing and nobody would see it."""
    allowed = TOLERANCES[ledger.dtype]["update"]
    for name, label in labels.items():
        decay = schedule[f"{label} learning_rate"][before.step] * schedule[f"{label} weight_decay"][before.step]
        start = before.weights[name].astype(np.float64)
        shrunk = decay * np.sqrt(squared(start))
        update = np.sqrt(squared(reference.after.weights[name].astype(np.float64) - start))
        if allowed.kind == "relative" and 0 < shrunk <= allowed.value * update:
            key = Key("update", f"decay of {name}", init, "decay", label)
            ledger.vacuous(key, before.step, "the decay is smaller than the update's tolerance")


def note_unknown_state(ledger: Ledger, init: str, step: int, paths: Iterable[str]) -> None:
    """The state of an optimizer that is laid out in an unknown way cannot be set to the reference's."""
    for path in paths:
        why = "what this part of the optimizer's state means could not be found: the update is compared at step 0 only"
        ledger.vacuous(Key("update", path, init), step, why)


def compare_buffers(ledger: Ledger, init: str, step: int, reference: Stepped, port: Stepped, truth: Stepped) -> None:
    """Running statistics after the step: what is in the weights but has no gradient."""
    for name in reference.after.weights:
        if name not in reference.gradients:
            a, b, t = (side.after.weights[name] for side in (reference, port, truth))
            ledger.enter(Key("parameters", name, init, name), step, a, b, t)


def compare_evaluation(ledger: Ledger, init: str, step: int, reference: Named, port: Named, truth: Named) -> None:
    """Sums and metrics over the same validation batches in eval mode."""
    param_eps = EPS["float64" if ledger.dtype == "float64" else "float32"]
    for name in ledger.names("evaluation", init, step, reference, port):
        a, b, t = (np.float64(side[name]) for side in (reference, port, truth))
        # A prediction between two nearly equal logits may fall either way: one of them is below what can be judged.
        counted = name in ("correct", "val_accuracy") and ledger.dtype != "float64"
        eps = 1 / reference["targets"] if counted else param_eps
        tolerance = NONE if a == 0 else None
        ledger.enter(Key("evaluation", name, init, name), step, a, b, t, eps=eps, tolerance=tolerance)


def norm(arrays: Iterable[np.ndarray]) -> np.float64:
    """The L2 norm of all arrays together."""
    return np.sqrt(np.float64(sum(squared(np.asarray(x, np.float64)) for x in arrays)))


def norm_ratio(a: Named, b: Named) -> np.float64:
    """||a|| / ||b|| over all leaves."""
    norms = [norm(tree.values()) for tree in (a, b)]
    return np.float64(norms[0] / norms[1]) if norms[1] else np.float64(1)
