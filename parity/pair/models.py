"""The port of a pair, and one forward and backward pass of either model. torch is not needed here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from parity.broken import of_port
from parity.capture import capture_jax
from parity.lines.line import Line
from parity.pair.inputs import Inputs, wide
from parity.pair.masks import Draw, Mask, draws_of, replayed
from parity.pair.outputs import floating
from parity.widen_jax import widened

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
        return widened(function, self.casts, self.narrow) if self.wide else function

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
