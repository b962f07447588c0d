"""torch's side of a pair, recorded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.environment import host
from parity.pair.compare import SEEDS
from parity.pair.inputs import Inputs, read_inputs, wide
from parity.pair.loss import Output, random_weights, torch_projection
from parity.pair.notes import of_dropout
from parity.pair.outputs import listed
from parity.pair.setup import projection
from parity.pair.torch_model import TorchModel, load_both, move_weights, own_copy, state_of, to_tensor
from parity.platforms import describe_torch, torch_device
from parity.record.parts import digest
from parity.record.recording import (
    File,
    Head,
    Original,
    Ran,
    Recording,
    Start,
    start_digest,
    write_recording,
    write_seed,
)
from parity.request import Platform
from twinstep.errors import UserError


def record_torch(
    folder: Path,
    file: File,
    pair: tuple[Any, Any],
    options: Mapping[str, Any],
    dtype: str,
    platform: Platform,
    given: Recording | None,
) -> None:
    """Write the module's passes into the folder.

    pair: module and inputs. options: `parity.compare`'s. given: another recording of this side, whose weights, inputs
    and loss are taken. Raises UserError for bad input, as `parity.compare` does.
    """
    device, is_wide = torch_device(platform), dtype == "float64"
    original = own_copy(pair[0], device)
    if given is not None and given.original is not None:
        load_state(original, given.original.state.state_dict, given.folder)
        inputs: Inputs = given.original.start.inputs
    else:
        inputs = read_inputs(pair[1], "inputs")
    chosen: list[Output] = []
    ours = options["losses"][0] if "losses" in options else projection(torch_projection, chosen)
    state = state_of(original)
    truth = TorchModel(own_copy(original, device), device, inputs, ours, wide=True)
    reference = truth if is_wide else TorchModel(original, device, inputs, ours, wide=False)
    notes = of_dropout(original, ())
    if given is not None and given.original is not None:
        start = given.original.start
        check_outputs(reference.outputs(), start, given.folder)
    else:
        start = start_of(inputs, reference.outputs(), options)

    def passes() -> list[Ran]:
        found = []
        for paths in start.losses:
            chosen[:] = [Output(path, path, (), start.factors[path]) for path in paths]
            run = reference.run()
            found.append(Ran(run, as_written(reference) if is_wide else truth.run()))
        return found

    write_seed(folder, 0, state.arrays, passes())
    weights = [digest_of(state.arrays)]
    for seed in range(1, 1 if is_wide else SEEDS):
        if given is not None and seed < len(given.head.weights):
            moved = load_both(reference, truth, given.weights(seed))
        else:
            moved = move_weights(reference, truth, seed)
        write_seed(folder, seed, moved, passes())
        weights.append(digest_of(moved))
    head = Head(
        "torch",
        type(original).__name__,
        dtype,
        file.name,
        file.sha256,
        {**host(("torch", "numpy")), "platform": platform, "device": describe_torch(platform, device)},
        start_digest(start),
        weights,
        "losses" not in options,
        [*file.notes, *notes],
        truth.casts,
        [],
    )
    write_recording(folder, head, original=Original(start, state))


def start_of(inputs: Inputs, outputs: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> Start:
    """Which outputs count, and how much. Raises UserError for `outputs=` or `where=` that do not fit them.

    A port may return less than the module does: all of torch's outputs, or the first alone. A second loss is for that.
    """
    if not outputs:
        raise UserError("torch's module returns no floating array, so nothing can be compared")
    paths = list(options.get("outputs") or outputs)
    for path in paths:
        if path not in outputs:
            raise UserError(f"outputs= names {path!r}, but the output of torch has {listed(outputs)}")
    where = options.get("where")
    if where is not None:
        where = np.asarray(where)
        for path in paths:
            if (shape := outputs[path].shape)[: where.ndim] != where.shape:
                raise UserError(f"where has shape {where.shape}, torch's output {shape}; it must fit the leading axes")
    several = len(paths) > 1 and "outputs" not in options and "losses" not in options
    losses = [paths, paths[:1]] if several else [paths]
    factors = {path: random_weights(outputs[path].shape, number, where) for number, path in enumerate(paths)}
    return Start(inputs, where, losses, factors)


def check_outputs(outputs: Mapping[str, np.ndarray], start: Start, folder: Path) -> None:
    """Raises UserError where the module does not return what the recorded loss is made of."""
    for path, factors in start.factors.items():
        if path not in outputs or outputs[path].shape != factors.shape:
            found = f"of shape {outputs[path].shape}" if path in outputs else "not there"
            raise UserError(
                f"output {listed({path: None})} is {found}, and of shape {factors.shape} in {folder}; name in OPTIONS' "
                "outputs those that both return"
            )


def as_written(model: TorchModel) -> Any:
    """The pass in float64 with the code's own casts at work; None where that cannot be run."""
    try:
        return model.as_written()
    except (UserError, RuntimeError):
        return None


def digest_of(weights: Mapping[str, np.ndarray]) -> str:
    """Equal for equal numbers, whatever their type."""
    return digest({name: wide(x) for name, x in weights.items()})


def load_state(module: torch.nn.Module, arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    """The recorded numbers into the module, in its own types. Raises UserError for those of another model."""
    tensors = {name: x for name, x in module.state_dict().items() if isinstance(x, torch.Tensor)}
    mend = "pass the recording of a model with the same parameters"
    for name in (*arrays, *tensors):
        if name not in tensors or name not in arrays:
            holder = "weights of" if name in arrays else "module, and not the weights of"
            raise UserError(f"{name} is among the {holder} {folder} alone; {mend}")
        if tuple(tensors[name].shape) != arrays[name].shape:
            raise UserError(
                f"{name} has shape {tuple(tensors[name].shape)}, and {arrays[name].shape} in {folder}; {mend}"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(to_tensor(arrays[name]))
