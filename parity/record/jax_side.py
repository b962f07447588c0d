"""JAX's side of a pair, recorded from the weights and inputs of a recording of torch's. torch is not needed here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from parity.broken import PortError
from parity.environment import host
from parity.exercised import source_files, watch_lines
from parity.pair.carrying import Convert
from parity.pair.equals import told_apart
from parity.pair.inputs import read_inputs, wide
from parity.pair.loss import Output, jax_projection
from parity.pair.models import JaxModel
from parity.pair.notes import lines_left_out
from parity.pair.setup import AUTO, carry, pair_outputs, projection, read_port
from parity.platforms import jax_device
from parity.record.recording import File, Head, Port, Ran, Recording, write_recording, write_seed
from parity.record.tensors import as_tensors
from parity.request import Platform
from twinstep.errors import UserError


def record_jax(
    folder: Path,
    file: File,
    convert: Convert,
    options: Mapping[str, Any],
    dtype: str,
    platform: Platform,
    given: Recording,
) -> None:
    """Write the port's passes into the folder.

    convert: the file's `jax_side`, from a state_dict to function and params. options: `parity.compare`'s. given: a
    recording of torch's side. Raises UserError for bad input, as `parity.compare` does, and for a port that raises.
    """
    assert given.original is not None
    start, state = given.original
    is_wide, device = dtype == "float64", jax_device(platform)
    function, params = convert(as_tensors(state.state_dict))
    again = options.get("convert") or (lambda arrays: convert(arrays)[1])
    inputs = read_inputs(options["jax_inputs"], "jax_inputs") if "jax_inputs" in options else start.inputs
    chosen: list[Output] = []
    loss = options["losses"][1] if "losses" in options else projection(jax_projection, chosen)

    with jax.enable_x64(is_wide), jax.default_device(device):
        held = read_port(params, None, state, options.get("buffers"))
        carried = carry(options.get("weights", AUTO), lambda arrays: again(as_tensors(arrays)), state, held)
        model = lambda wide: JaxModel(
            function, held.params.build, held.buffers and held.buffers.build, inputs, loss, wide
        )
        port, truth = model(is_wide), model(True)

        def passes(leaves: Mapping[str, Any]) -> Ran:
            run = port.run(*held.apart(port.ready(leaves)))
            try:
                if is_wide:
                    return Ran(run, port.as_written(*held.apart(port.ready(leaves))))
                with jax.enable_x64(True):
                    return Ran(run, truth.run(*held.apart(truth.ready(leaves))))
            except (PortError, UserError, RuntimeError):
                return Ran(run, None)

        # A sum that was made in float32 is made again in float64.
        arrays = {name: wide(x) for name, x in state.arrays.items()}
        first = carried.leaves(arrays, held.arrays) if is_wide else held.arrays
        with watch_lines(source_files(function)) as lines:
            try:
                recorded = given.passes(0)
                ready = held.apart(port.ready(first))
                found = pair_outputs(recorded[0].run.outputs, port, *ready, options.get("outputs"), start.where)
                number = loss_of(start.losses, found, given, projected="losses" not in options)
                chosen += [one._replace(weights=start.factors.get(one.torch, one.weights)) for one in found]
                ran = passes(first)
                write_seed(folder, 0, {}, [ran])
                ours = recorded[number].run.param_gradients
                carried = told_apart(carried, state.arrays, ours, ran.run.param_gradients)
                for seed in range(1, 1 if is_wide else len(given.head.weights)):
                    write_seed(folder, seed, {}, [passes(carried.leaves(given.weights(seed), held.arrays))])
            except PortError as error:
                raise UserError(f"the port raises {error}; nothing was recorded") from error
        head = Head(
            "jax",
            given.head.model,
            dtype,
            file.name,
            file.sha256,
            {
                **host(("jax", "jaxlib", "numpy")),
                "platform": platform,
                "device": f"1 x {device.device_kind}",
            },
            given.head.start,
            given.head.weights,
            "losses" not in options,
            [*file.notes, *lines_left_out(lines, function)],
            port.casts,
            port.narrow,
        )
    port_side = Port(held.arrays, carried, chosen, options.get("layers", AUTO), start.where)
    write_recording(folder, head, port=port_side)


def loss_of(losses: Sequence[Sequence[str]], found: Sequence[Output], given: Recording, projected: bool) -> int:
    """Which of the recorded losses counts the outputs that were found. Raises UserError where none does."""
    if not projected:
        return 0
    paths = {one.torch for one in found}
    for number, counted in enumerate(losses):
        if set(counted) == paths:
            return number
    raise UserError(
        f"of torch's outputs the port has {', '.join(map(repr, paths))} alone, and the loss of {given.folder} counts "
        f"{', '.join(map(repr, losses[0]))}; say in OPTIONS' outputs which are compared, and record torch's side again"
    )
