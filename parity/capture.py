"""Activations and their gradients by name, in execution order, in both frameworks.

torch: hooks on the named modules of any `torch.nn.Module`. JAX: an interpreter over the jaxpr of any function, which
reads the tags of `jax.ad_checkpoint.checkpoint_name`; our models tag each output with the name of torch's module.
A name that occurs again in one forward pass gets " #2", " #3". torch is imported where it is used: the side of JAX can
be captured without it.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parity.jax_internals import (
    Jaxpr,
    Literal,
    Scan,
    Var,
    bind,
    called_function,
    inner_jaxprs,
    scan_of,
    tag_of,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

Visit = Callable[[str, jax.Array], jax.Array]


# ---------------------------------------------------------------------------------------------------------- torch
@dataclass
class TorchPass:
    """One forward pass: outputs by name in execution order, and their gradients once `backward` ran."""

    activations: dict[str, np.ndarray] = field(default_factory=dict)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    done: bool = False  # rematerialization calls modules again in the backward pass: not recorded


@contextmanager
def capture_torch(module: "nn.Module", output_name: str = "output") -> Iterator[list[TorchPass]]:
    """Records every forward pass of `module` (and the backward pass through it) within the context.

    Names are those of `module.named_modules()`, and `output_name` for what `module` itself returns; several tensors of
    one module are "name.0", "name.1", or by their keys. Values are copied at once: a later operation in place does not
    change them.
    """
    passes: list[TorchPass] = []

    def begin(*_: Any) -> None:
        passes.append(TorchPass())

    def record(name: str, output: Any) -> None:
        current = passes[-1]
        if current.done:
            return
        for key, part in parts_of(output):
            record(f"{name}.{key}", part)
        if is_tensor(output):
            name = fresh(name, current.activations)
            current.activations[name] = to_numpy(output)
            if output.requires_grad:
                output.register_hook(lambda grad: current.gradients.__setitem__(name, to_numpy(grad)))

    def finish(output: Any) -> None:
        record(output_name, output)
        passes[-1].done = True

    handles = [module.register_forward_pre_hook(begin)]
    for name, part in module.named_modules():
        if name:
            handles.append(part.register_forward_hook(lambda _, args, output, name=name: record(name, output)))
    handles.append(module.register_forward_hook(lambda _, args, output: finish(output)))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def parts_of(output: Any) -> list[tuple[str, Any]]:
    """The parts of a tuple, list, dict (Hugging Face's `ModelOutput` is one) or dataclass by key; none of all else."""
    if isinstance(output, Mapping):
        return [(str(key), part) for key, part in output.items()]
    if dataclasses.is_dataclass(output):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, tuple | list):
        return [(str(number), part) for number, part in enumerate(output)]
    return []


def is_tensor(x: Any) -> bool:
    """Whether it is a tensor of torch's; where torch is not loaded, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    """A copy on the host; bfloat16, which torch cannot hand to NumPy, goes over its bits."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(jnp.bfloat16).copy()
    return tensor.numpy().copy()


# ------------------------------------------------------------------------------------------------------------ JAX
class JaxPass(NamedTuple):
    """One forward and backward pass: `loss` and `aux` as the function returned them, the rest by name."""

    loss: jax.Array
    aux: Any
    activations: dict[str, jax.Array]
    gradients: dict[str, jax.Array]  # with respect to the activations that are floating point
    param_gradients: Any  # tree like the first argument


def capture_jax(function: Callable[..., tuple[jax.Array, Any]], params: Any, *args: Any) -> JaxPass:
    """Differentiates `function(params, *args) -> (scalar, aux)` with respect to its parameters and every tag.

    A tagged value's gradient is that of a zero added to it. Traceable: wrap it in `jax.jit`.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, *args)
    flat, treedef = jax.tree.flatten((params, *args)), jax.tree.structure(shapes)
    n_params = len(jax.tree.leaves(params))

    def run(leaves: list, visit: Visit) -> tuple[jax.Array, Any]:
        outputs = evaluate(closed.jaxpr, closed.consts, [*leaves, *flat[0][n_params:]], visit)
        return jax.tree.unflatten(treedef, outputs)

    def perturbed(leaves: list, offsets: dict[str, jax.Array]) -> tuple[jax.Array, tuple[Any, dict]]:
        seen: dict[str, jax.Array] = {}

        def visit(name: str, value: jax.Array) -> jax.Array:
            name = fresh(name, seen)
            seen[name] = value
            return value + offsets[name] if name in offsets else value

        loss, aux = run(leaves, visit)
        return loss, (aux, seen)

    leaves = flat[0][:n_params]
    _, (_, tagged) = jax.eval_shape(perturbed, leaves, {})
    offsets = {k: jnp.zeros(s.shape, s.dtype) for k, s in tagged.items() if jnp.issubdtype(s.dtype, jnp.floating)}
    (loss, (aux, seen)), (grads, gradients) = jax.value_and_grad(perturbed, argnums=(0, 1), has_aux=True)(
        leaves, offsets
    )
    return JaxPass(loss, aux, seen, gradients, jax.tree.unflatten(jax.tree.structure(params), grads))


def tagged_shapes(function: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """The shape of `function(*args)` and of every tag on the way, in execution order. Nothing is computed."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    order: list[str] = []

    def run(leaves: list) -> list[jax.Array]:
        seen: dict[str, jax.Array] = {}

        def visit(name: str, value: jax.Array) -> jax.Array:
            name = fresh(name, seen)
            seen[name] = value
            order.append(name)
            return value

        evaluate(closed.jaxpr, closed.consts, leaves, visit)
        return list(seen.values())  # a dict would come back sorted by name

    found = jax.eval_shape(run, jax.tree.leaves(args))
    return shapes, dict(zip(order, found, strict=True))


def evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], visit: Visit) -> list[Any]:
    """Evaluates a jaxpr; `visit(name, value)` sees each tagged value and returns the value to go on with.

    Goes into every inner function that holds tags (jit, remat, custom derivatives, scan, unrolled) and leaves the
    others as they are. A function with a custom derivative and tags in it is differentiated through its body.
    """
    values: dict[Var, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if (tag := tag_of(eqn)) is not None:
            outputs = [visit(tag, inputs[0])]
        elif not has_tags(inner_jaxprs(eqn)):
            outputs = bind(eqn, inputs)
        elif (scan := scan_of(eqn)) is not None:
            outputs = unroll(scan, inputs, visit)
        elif (inner := called_function(eqn)) is not None:
            outputs = evaluate(inner.jaxpr, inner.consts, inputs, visit)
        else:
            outputs = bind(eqn, inputs)  # a loop of unknown length or a branch: its tags have no one value
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def has_tags(jaxprs: Iterable[Jaxpr]) -> bool:
    """Whether any of the jaxprs holds a tag, at any depth."""
    return any(tag_of(eqn) is not None or has_tags(inner_jaxprs(eqn)) for jaxpr in jaxprs for eqn in jaxpr.eqns)


def unroll(scan: Scan, inputs: list[Any], visit: Visit) -> list[Any]:
    """A scan as a Python loop; the tags of iteration i become "name[i]"."""
    function, n_consts, n_carry = scan.function, scan.n_consts, scan.n_carry
    consts, carry, stacked = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]
    rows: dict[int, list[Any]] = {}
    for i in range(scan.length)[:: -1 if scan.reverse else 1]:

        def visit_iteration(name: str, value: jax.Array, i: int = i) -> jax.Array:
            return visit(f"{name}[{i}]", value)

        args = [*consts, *carry, *(x[i] for x in stacked)]
        outputs = evaluate(function.jaxpr, function.consts, args, visit_iteration)
        carry, rows[i] = outputs[:n_carry], outputs[n_carry:]
    return [*carry, *(jnp.stack(column) for column in zip(*(rows[i] for i in sorted(rows)), strict=True))]


def fresh(name: str, taken: dict[str, Any]) -> str:
    """`name`, or with a number where it is taken."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} #{number}"
    return candidate
