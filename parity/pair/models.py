"""The two models of a pair, and one forward and backward pass of each."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.ad_checkpoint import checkpoint_name

from parity.broken import described, of_port
from parity.capture import capture_jax, capture_torch, to_numpy
from parity.lines.line import Line
from parity.pair.inputs import Inputs, wide
from parity.pair.masks import Draw, Mask, draws_of, recorded, replayed
from parity.pair.outputs import floating
from parity.widen_jax import widened as widened_jax
from parity.widen_torch import widen_module
from parity.widen_torch import widened as widened_torch
from twinstep.errors import UserError

OUTPUT = "output"  # what the whole model returns, on both sides; its parts are "output.logits"
COUNTERS = "num_batches_tracked"  # BatchNorm's, which no port has


class Pass(NamedTuple):
    """One forward and backward pass, in NumPy: activations and outputs by name, gradients by the same names."""

    loss: np.ndarray
    outputs: dict[str, np.ndarray]  # by path
    activations: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    param_gradients: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]  # after the pass
    masks: tuple[Mask, ...] = ()  # that torch drew


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
        return widened_torch() if self.wide else nullcontext([])

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
    load(reference.module, moved)
    rounded = reference.parameters()
    load(truth.module, rounded)
    return {**reference.buffers(), **rounded}


@dataclass
class JaxModel:
    """The port. build, build_buffers: from arrays by name to what `function` takes."""

    function: Callable[..., Any]
    build: Callable[[Mapping[str, Any]], Any]
    build_buffers: Callable[[Mapping[str, Any]], Any] | None
    inputs: Inputs
    loss: Callable[..., jax.Array]
    wide: bool
    casts: list[Line] = field(default_factory=list)
    narrow: list[str] = field(default_factory=list)  # the primitives that cannot be widened, with their lines
    masks: tuple[Mask, ...] = ()  # torch's of the pass, which it draws instead of its own
    jitted: Any = None

    def __post_init__(self) -> None:
        if self.wide:
            self.inputs = self.inputs.map(wide)

    def ready(self, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Arrays by name as JAX's, float64 where the port is widened."""
        return {name: jnp.asarray(wide(x) if self.wide else x) for name, x in arrays.items()}

    def call(self, leaves: Mapping[str, Any], buffers: Mapping[str, Any], arrays: list[Any]) -> tuple[Any, Any]:
        """The output and the buffers after it; traceable. arrays: the inputs', and the masks."""
        with replayed(arrays[len(self.inputs.arrays()) :]):
            return self.returned(leaves, buffers, self.inputs.with_arrays(arrays))

    def returned(self, leaves: Mapping[str, Any], buffers: Mapping[str, Any], inputs: Inputs) -> tuple[Any, Any]:
        """What the function returns, with buffers or none."""
        if self.build_buffers is None:
            return self.function(self.build(leaves), *inputs.args, **inputs.kwargs), {}
        found = self.function(self.build(leaves), self.build_buffers(buffers), *inputs.args, **inputs.kwargs)
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError("with buffers=, the function must return (output, buffers)")
        return found

    def arithmetic(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is run; notes the lines that cast."""
        return widened_jax(function, self.casts, self.narrow) if self.wide else function

    @of_port()
    def shapes(self, leaves: Mapping[str, Any], buffers: Mapping[str, Any]) -> Any:
        """Of the output; nothing is computed."""
        return jax.eval_shape(self.arithmetic(lambda *args: self.call(*args)[0]), leaves, buffers, self.inputs.arrays())

    @of_port()
    def draws(self, leaves: Mapping[str, Any], buffers: Mapping[str, Any]) -> list[Draw]:
        """The masks that the port draws by itself."""
        return draws_of(lambda *args: self.call(*args)[1], leaves, buffers, self.inputs.arrays())

    @of_port()
    def values(self, leaves: Mapping[str, Any], buffers: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The outputs by path."""
        run = jax.jit(self.arithmetic(lambda *args: floating(self.call(*args)[0])))
        return {path: np.asarray(x) for path, x in run(leaves, buffers, self.inputs.arrays()).items()}

    def as_written(self, leaves: Mapping[str, Any], buffers: Mapping[str, Any]) -> Pass:
        """The same pass from float64 numbers, with the code's own casts at work."""
        return replace(self, wide=False, casts=[], jitted=None).run(leaves, buffers)

    @of_port()
    def run(self, leaves: Mapping[str, Any], buffers: Mapping[str, Any]) -> Pass:
        """Forward and backward, compiled once."""
        if self.jitted is None:
            if hasattr(self.function, "source"):  # an adapter's: what was traced without it has no tags
                jax.clear_caches()
            loss = self.arithmetic(self.tagged_loss)
            self.jitted = jax.jit(lambda leaves, *rest: capture_jax(loss, leaves, *rest))
        given = {name: x for name, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        fixed = {name: x for name, x in leaves.items() if name not in given}
        found = self.jitted(given, fixed, buffers, [*self.inputs.arrays(), *(mask.kept for mask in self.masks)])
        host = lambda named: {name: np.asarray(x) for name, x in named.items()}
        outputs, after = found.aux
        return Pass(
            np.asarray(found.loss),
            host(outputs),
            host(found.activations),
            host(found.gradients),
            host(found.param_gradients),
            host(after),
        )

    def tagged_loss(self, given: Any, fixed: Any, buffers: Any, arrays: list[Any]) -> tuple[jax.Array, Any]:
        """Traceable: the loss; and the outputs, each with its tag, with the buffers after the pass."""
        output, after = self.call({**given, **fixed}, buffers, arrays)
        tagged = {path: checkpoint_name(x, output_name(path)) for path, x in floating(output).items()}
        inputs = self.inputs.with_arrays(arrays)
        loss = self.loss(replaced(output, tagged), *inputs.args, **inputs.kwargs)
        return loss, (tagged, named_like(buffers, after))


def output_name(path: str) -> str:
    """The name of an output among the activations."""
    return f"{OUTPUT}.{path}" if path else OUTPUT


def replaced(output: Any, tagged: Mapping[str, Any]) -> Any:
    """The output with its floating arrays, in order, replaced by the tagged ones."""
    leaves, structure = jax.tree.flatten(output)
    by_id = {id(x): tagged[path] for path, x in floating(output).items()}
    return jax.tree.unflatten(structure, [by_id.get(id(leaf), leaf) for leaf in leaves])


def named_like(buffers: Mapping[str, Any], after: Any) -> dict[str, Any]:
    """The buffers that the function returned, under the names of those it was given."""
    leaves = jax.tree.leaves(after)
    if len(leaves) != len(buffers):
        raise TypeError(f"the function was given {len(buffers)} buffers and returns {len(leaves)}")
    return dict(zip(buffers, leaves, strict=True))
