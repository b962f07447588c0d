"""The stages of one pair, each entered in the ledger: activations, loss, gradients and buffers of one pass."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from parity.budget import TOLERANCES, Tolerance
from parity.entries import GIVEN, Key
from parity.ledger import Ledger
from parity.pair.carrying import Carried
from parity.pair.layers import Layer, in_layout
from parity.pair.loss import Output, size_of_terms
from parity.pair.models import Pass, output_name
from parity.pair.outputs import axes_between
from parity.stages import backwards
from twinstep.errors import UserError

DTYPES = tuple(TOLERANCES)
NEEDED = ("activations", "loss", "gradients")  # without which there is no verdict
TIMES = 10  # a budget is this many times the known rounding of numbers that were made in float32

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # torch's, the port's, and the truth where it is another


def check_dtype(dtype: str) -> None:
    """Raises UserError for one in which no pair is compared."""
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; choose from {', '.join(DTYPES)}")


class Compared(NamedTuple):
    """What is compared, and how: the same for every pass of a pair."""

    outputs: list[Output]
    layers: dict[str, Layer]
    carried: Carried
    where: np.ndarray | None  # rows that count
    projected: bool  # whether the loss is ours
    known: Mapping[tuple[str, str], float] = {}  # stage and tensor -> relative rounding of numbers made in float32


def compare_pass(ledger: Ledger, what: Compared, ours: Pass, theirs: Pass, truth: Pass | None) -> None:
    """One forward and backward pass of both sides, in the order of the execution. truth: in float64, else `ours`."""
    axes = {}
    for name, layer in what.layers.items():
        port = theirs.activations[layer.tag]
        axes[name] = axes_between(ours.activations[name], port) if layer.axes is None else layer.axes
        enter(
            ledger,
            what,
            Key("activations", name, GIVEN),
            *of_layer("activations", name, axes, what, ours, theirs, truth),
        )
    for one in what.outputs:
        torch_side, true = (None if s is None else transposed(s.outputs[one.torch], one.axes) for s in (ours, truth))
        assert torch_side is not None
        enter(
            ledger, what, Key("activations", output_name(one.torch), GIVEN), torch_side, theirs.outputs[one.jax], true
        )

    true_loss = None if truth is None else truth.loss
    tolerance = loss_tolerance(ledger, what, ours)
    ledger.enter(Key("loss", "loss", GIVEN), 0, ours.loss, theirs.loss, true_loss, tolerance=tolerance)

    for name in backwards([name for name in ours.gradients if name in what.layers]):
        if what.layers[name].tag in theirs.gradients:
            arrays = of_layer("gradients", name, axes, what, ours, theirs, truth)
            enter(ledger, what, Key("gradients", f"d {name}", GIVEN, "activation"), *arrays)
    compare_parameters(ledger, what, ours, theirs, truth)
    compare_buffers(ledger, what.carried, ours, theirs, truth)


def of_layer(
    kind: str,
    name: str,
    axes: Mapping[str, tuple[int, ...]],
    what: Compared,
    ours: Pass,
    theirs: Pass,
    truth: Pass | None,
) -> Arrays:
    """A layer's activation, or the gradient of it, in the port's layout."""
    port = getattr(theirs, kind)[what.layers[name].tag]
    torch_side, true = (
        None if side is None else in_layout(getattr(side, kind)[name], port, axes[name]) for side in (ours, truth)
    )
    assert torch_side is not None
    return torch_side, port, true


def enter(
    ledger: Ledger, what: Compared, key: Key, ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray | None
) -> None:
    """Enter two arrays but for the rows that don't count, and for what is infinite on both sides, as masked logits."""
    if what.where is not None and ours.shape[: what.where.ndim] == what.where.shape == theirs.shape[: what.where.ndim]:
        ours, theirs = ours[what.where], theirs[what.where]
        truth = None if truth is None else truth[what.where]
    infinite = np.isinf(ours)
    some = ours.shape == theirs.shape and infinite.any() and not infinite.all()
    if some and np.array_equal(np.where(infinite, ours, 0), np.where(np.isinf(theirs), theirs, 0)):
        ours, theirs = (np.where(infinite, 0, x) for x in (ours, theirs))
        truth = None if truth is None else np.where(infinite, 0, truth)
    ledger.enter(key, 0, ours, theirs.astype(ours.dtype), truth, tolerance=allowed(ledger, what, key))


def allowed(ledger: Ledger, what: Compared, key: Key) -> Tolerance:
    """The stage's tolerance, or what is known of the rounding of numbers that were made in float32."""
    own = TOLERANCES[ledger.dtype][key.stage]
    known = TIMES * what.known.get((key.stage, key.tensor), 0.0)
    if own.kind != "relative" or known <= own.value:
        return own
    return Tolerance("relative", known, "ten times the rounding of numbers that the code made in float32")


def transposed(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The output in the port's layout."""
    return x.transpose(axes) if axes else x


def loss_tolerance(ledger: Ledger, what: Compared, ours: Pass) -> Tolerance:
    """Of the user's loss, or of ours."""
    return of_projection(ledger, what, ours) if what.projected else allowed(ledger, what, Key("loss", "loss", GIVEN))


def of_projection(ledger: Ledger, what: Compared, ours: Pass) -> Tolerance:
    """The tolerance of a sum whose terms may cancel: that of its terms."""
    own = allowed(ledger, what, Key("loss", "loss", GIVEN))
    if own.kind != "relative" or not ours.loss:
        return own
    # What is known of the outputs' rounding is relative to the terms, too.
    known = [what.known.get(("activations", output_name(one.torch)), 0.0) for one in what.outputs]
    terms = size_of_terms(what.outputs, ours.outputs) / abs(float(ours.loss))
    value = max(TOLERANCES[ledger.dtype]["loss"].value, TIMES * max(known, default=0.0)) * max(1.0, terms)
    return Tolerance(own.kind, max(own.value, value), "relative to the terms, which partly cancel")


def compare_parameters(ledger: Ledger, what: Compared, ours: Pass, theirs: Pass, truth: Pass | None) -> None:
    """The gradient of every parameter of torch's, beside those of the leaves that it feeds."""
    back = what.carried.back(theirs.param_gradients)
    for name, gradient in ours.param_gradients.items():
        key = Key("gradients", name, GIVEN, "parameter")
        if name in back:
            true = None if truth is None else truth.param_gradients[name]
            near = allowed(ledger, what, key)
            ledger.enter(key, 0, gradient, back[name].astype(gradient.dtype), true, tolerance=near)
        elif not gradient.any():
            ledger.vacuous(key, 0, "no gradient reaches it, and it feeds no leaf")
        elif other := with_gradient(gradient, name, ours, back):
            ledger.vacuous(key, 0, f"feeds no leaf; its gradient is that of {other}, to which a port may have added it")
        else:
            ledger.refuse(key, 0, "torch trains it, and no leaf of the port holds it")


def with_gradient(gradient: np.ndarray, name: str, ours: Pass, back: Mapping[str, np.ndarray]) -> str:
    """Another parameter that feeds a leaf and has the same gradient: the second bias of an LSTM's gate, say."""
    for other, its in ours.param_gradients.items():
        if other != name and other in back and its.shape == gradient.shape and np.array_equal(its, gradient):
            return other
    return ""


def compare_buffers(ledger: Ledger, carried: Carried, ours: Pass, theirs: Pass, truth: Pass | None) -> None:
    """What the pass leaves in the buffers: a running mean and variance."""
    for leaf, after in theirs.buffers.items():
        if leaf in carried.sources:
            arrays = (None if side is None else carried.sources[leaf].carry(side.buffers) for side in (ours, truth))
            torch_side, true = arrays
            assert torch_side is not None
            key = Key("parameters", f"{leaf} (after the pass)", GIVEN, "buffer")
            ledger.enter(key, 0, torch_side, after.astype(torch_side.dtype), true)
