"""What of two recordings belongs together: of torch's side and JAX's, or of one side twice, by equal names."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from parity.entries import GIVEN, Key
from parity.ledger import Ledger
from parity.pair.carrying import Carried, compare_weights
from parity.pair.layers import Layer, is_output
from parity.pair.loss import Output
from parity.pair.models import Pass
from parity.pair.notes import left_out, some
from parity.pair.outputs import axes_between
from parity.pair.setup import one_by_one, pair_layers
from parity.pair.stages import Compared
from parity.record.recording import Ran, Recording
from parity.sources import Piece, Source
from parity.sources.arrays import rounded
from twinstep.errors import UserError

PRECISIONS = ("bfloat16", "float32", "float64")


class Pairing(NamedTuple):
    """The reference, and what is compared with it."""

    reference: Recording
    port: Recording
    number: int  # of the reference's loss
    carried: Carried
    match: Callable[[Ran, Ran], tuple[Ran, Ran]]  # the passes of both as far as they can be compared
    compared: Callable[[Pass, Pass], Compared]
    left_out: Callable[[Compared, Pass, Pass], list[str]]


def torch_with_jax(ledger: Ledger, torch: Recording, jax: Recording) -> Pairing:
    """As JAX's side found it when it was recorded. Raises UserError unless that was from torch's recording."""
    assert torch.original is not None
    assert jax.port is not None
    start, port = torch.original.start, jax.port
    if torch.head.dtype != jax.head.dtype:
        raise UserError(
            f"{torch.folder} is recorded in {torch.head.dtype} and {jax.folder} in {jax.head.dtype}; record both with "
            "one --dtype"
        )
    if torch.head.start != jax.head.start or torch.head.weights[0] != jax.head.weights[0]:
        raise UserError(
            f"{jax.folder} was recorded from other weights or inputs than those of {torch.folder}; record it again "
            f"with --weights {torch.folder}"
        )
    paths = {one.torch for one in port.outputs}
    number = next((n for n, counted in enumerate(start.losses) if set(counted) == paths), 0)
    compare_weights(ledger, port.carried, torch.original.state.arrays, port.leaves)

    def match(ours: Ran, theirs: Ran) -> tuple[Ran, Ran]:
        return ours, theirs.map(lambda x: one_by_one(x, port.layers, ours.run))

    def compared(ours: Pass, theirs: Pass) -> Compared:
        layers = pair_layers(port.layers, ours, theirs, port.carried)
        return Compared(port.outputs, layers, port.carried, port.where, torch.head.projected)

    return Pairing(torch, jax, number, port.carried, match, compared, left_out)


def one_side(ledger: Ledger, reference: Recording, port: Recording) -> Pairing:
    """By equal names of parameters, layers and outputs. Raises UserError unless both had the same inputs and loss."""
    if reference.head.start != port.head.start:
        raise UserError(
            f"{reference.folder} and {port.folder} were recorded from other inputs, or from outputs of other names or "
            f"shapes; record both with the same --weights"
        )
    ours, theirs = weights_of(reference), weights_of(port)
    shared = ledger.names("weights", GIVEN, 0, ours, theirs)
    fitting = [name for name in shared if ours[name].shape == theirs[name].shape]
    shapes = {name: ours[name].shape for name in fitting}
    carried = Carried({name: whole(name, shape) for name, shape in shapes.items()}, shapes)
    for name in shared:
        # The narrower type is the reference's.
        ledger.enter(Key("weights", name, GIVEN), 0, ours[name], rounded(theirs[name], ours[name].dtype))

    def match(ours: Ran, theirs: Ran) -> tuple[Ran, Ran]:
        trained = ledger.names(
            "gradients",
            GIVEN,
            0,
            kept(ours.run.param_gradients, carried.sources),
            kept(theirs.run.param_gradients, carried.sources),
            "parameter",
        )

        def of(x: Pass, other: Pass) -> Pass:
            buffers = kept(x.buffers, [name for name in other.buffers if name in carried.sources])
            return x._replace(param_gradients=kept(x.param_gradients, trained), buffers=buffers)

        loss = theirs.run.loss.astype(ours.run.loss.dtype)
        mine, its = ours.map(lambda x: of(x, theirs.run)), theirs.map(lambda x: of(x, ours.run))
        return mine, its._replace(run=its.run._replace(loss=loss))

    def compared(ours: Pass, theirs: Pass) -> Compared:
        names = [name for name in ours.activations if name in theirs.activations and not is_output(name)]
        outputs, where = paired_outputs(reference, port, ours, theirs)
        return Compared(outputs, {name: Layer(name) for name in names}, carried, where, reference.head.projected)

    def alone(what: Compared, ours: Pass, theirs: Pass) -> list[str]:
        folders = (reference.folder, ours, theirs), (port.folder, theirs, ours)
        missing = [(f, [n for n in own.activations if n not in other.activations]) for f, own, other in folders]
        return [f"Layers of {folder} alone, not compared: {some(names)}." for folder, names in missing if names]

    return Pairing(reference, port, 0, carried, match, compared, alone)


def whole(name: str, shape: tuple[int, ...]) -> Source:
    """The array itself."""
    return Source(shape, (Piece(name, shape, (), shape, tuple(range(len(shape))), shape, ()),))


def paired_outputs(
    reference: Recording, port: Recording, ours: Pass, theirs: Pass
) -> tuple[list[Output], np.ndarray | None]:
    """The outputs of one side, and the rows that count. Raises UserError where the two count other outputs."""
    if reference.original is not None:
        start = reference.original.start
        return [Output(path, path, (), start.factors[path]) for path in start.losses[0]], start.where
    assert reference.port is not None
    assert port.port is not None
    known = {one.torch: one for one in port.port.outputs}
    if known.keys() != {one.torch for one in reference.port.outputs}:
        raise UserError(f"{reference.folder} and {port.folder} have other outputs; name in OPTIONS' outputs the same")
    found = []
    for one in reference.port.outputs:
        other = known[one.torch].jax
        axes = axes_between(ours.outputs[one.jax], theirs.outputs[other])
        found.append(Output(one.jax, other, axes, one.weights))
    return found, reference.port.where


def weights_of(recording: Recording) -> dict[str, np.ndarray]:
    """Parameters and buffers as given."""
    if recording.original is not None:
        return recording.original.state.arrays
    assert recording.port is not None
    return recording.port.leaves


def kept(arrays: Mapping[str, np.ndarray], names: Mapping | list[str]) -> dict[str, np.ndarray]:
    """Those of these names."""
    return {name: x for name, x in arrays.items() if name in names}


def narrower_first(one: Recording, other: Recording) -> tuple[Recording, Recording]:
    """The reference is the first, or of two precisions the narrower, by whose rounding both are judged."""
    narrower = PRECISIONS.index(other.head.dtype) < PRECISIONS.index(one.head.dtype)
    return (other, one) if narrower else (one, other)
