"""The original of a pair, and one forward and backward pass of it."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from parity.broken import described
from parity.capture import capture_torch, to_numpy
from parity.lines.line import Line
from parity.pair.carrying import Convert, State
from parity.pair.inputs import Inputs, wide
from parity.pair.models import COUNTERS, OUTPUT, Pass
from parity.pair.outputs import floating
from parity.pair.torch_masks import recorded
from parity.widen_torch import widen_module, widened
from twinstep.errors import UserError


def own_copy(module: Any, device: torch.device) -> torch.nn.Module:
    """The module itself, out of `torch.compile` and `DataParallel`, copied. Raises UserError for no module."""
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"module is of type {type(module).__name__}; pass a torch.nn.Module")
    while True:
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return copy.deepcopy(module).to(device)


def state_of(module: torch.nn.Module) -> State:
    """Its parameters and buffers in NumPy."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    first: dict[Any, str] = {}
    for name, tensor in held.items():
        first.setdefault(place_of(tensor), name)
    names = {}
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            names[name] = first.setdefault(place_of(tensor), name)
            held.setdefault(names[name], tensor)
    arrays = arrays_of(module)
    return State(arrays, {name: to_numpy(x) for name, x in held.items() if name not in arrays}, names)


def arrays_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers as NumPy arrays, each once, under the first of its names; counters are left out."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: to_numpy(tensor) for name, tensor in held.items() if not name.endswith(COUNTERS)}


def place_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tied tensors."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def of_tensors(convert: Convert | None, device: torch.device) -> Convert | None:
    """The user's `convert`, which takes tensors, for a dict of arrays."""
    if convert is None:
        return None
    return lambda arrays: convert({name: to_tensor(x).to(device) for name, x in arrays.items()})


def to_tensor(x: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`: a copy, bfloat16 over its bits."""
    if x.dtype == jnp.bfloat16:
        return torch.from_numpy(x.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


@dataclass
class TorchModel:
    """The original. `wide`: in float64, whatever its code casts to; else as it is written."""

    module: torch.nn.Module
    device: torch.device
    inputs: Inputs
    loss: Callable[..., torch.Tensor]
    wide: bool
    casts: list[Line] = field(default_factory=list)  # the lines that would have narrowed a number

    def __post_init__(self) -> None:
        if self.wide:
            widen_module(self.module)
            self.inputs = self.inputs.map(wide)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """In which it is run; gives the lines that cast."""
        return widened() if self.wide else nullcontext([])

    def parameters(self) -> dict[str, np.ndarray]:
        """Each once, under the first of its names."""
        return {name: to_numpy(p) for name, p in self.module.named_parameters()}

    def buffers(self) -> dict[str, np.ndarray]:
        """Statistics and constants, but for counters."""
        return {name: to_numpy(b) for name, b in self.module.named_buffers() if not name.endswith(COUNTERS)}

    def call(self) -> tuple[Any, Inputs]:
        """The output, and the inputs as tensors. Raises UserError for a module that raises."""
        inputs = self.inputs.map(lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(self.device))
        try:
            return self.module(*inputs.args, **inputs.kwargs), inputs
        except Exception as error:
            raise UserError(f"torch's module raises {described(error)}; nothing can be compared with it") from error

    def outputs(self) -> dict[str, np.ndarray]:
        """The floating arrays of the output by path. Statistics are not changed."""
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        with self.arithmetic(), torch.no_grad(), recorded():
            found = {path: to_numpy(x) for path, x in floating(self.call()[0]).items()}
            for name, buffer in self.module.named_buffers():
                buffer.copy_(before[name])
        return found

    def as_written(self) -> Pass:
        """The same pass from float64 numbers, with the code's own casts at work."""
        own = TorchModel(own_copy(self.module, self.device), self.device, self.inputs, self.loss, wide=False)
        return own.run()

    def run(self) -> Pass:
        """Forward and backward; a gradient that reaches no parameter is zero, and frozen parameters have none."""
        self.module.zero_grad(set_to_none=True)
        with self.arithmetic() as casts, capture_torch(self.module, OUTPUT) as passes:
            with recorded() as masks:
                output, inputs = self.call()
                loss = self.loss(output, *inputs.args, **inputs.kwargs)
            if loss.requires_grad:
                loss.backward()
        self.casts += [cast for cast in casts if cast not in self.casts]
        outputs = {path: to_numpy(x) for path, x in floating(output).items()}
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        gradients = {n: to_numpy(torch.zeros_like(p) if p.grad is None else p.grad) for n, p in trained.items()}
        found = passes[0]
        return Pass(
            to_numpy(loss), outputs, found.activations, found.gradients, gradients, self.buffers(), tuple(masks)
        )


def load(module: torch.nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Parameters of these values, in the module's own types."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name].astype(np.float64)))


def move_weights(reference: TorchModel, truth: TorchModel, seed: int) -> dict[str, np.ndarray]:
    """Every parameter of both moved by a hundredth at random, to equal numbers; returns them, with the buffers."""
    random = np.random.default_rng(seed)
    moved = {name: x * (1 + 0.01 * random.standard_normal(x.shape)) for name, x in truth.parameters().items()}
    return load_both(reference, truth, moved)


def load_both(reference: TorchModel, truth: TorchModel, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of these values, as the reference's types round them, in both; returns them, with the buffers."""
    load(reference.module, arrays)
    rounded = reference.parameters()
    load(truth.module, rounded)
    return {**reference.buffers(), **rounded}
