"""Activations and their gradients by name, in execution order, in both frameworks.

torch: hooks on the named modules of any `torch.nn.Module`. JAX: an interpreter over the jaxpr of any function, which
reads the tags of `jax.ad_checkpoint.checkpoint_name`; our models tag each output with the name of torch's module.
A name that occurs again in one forward pass gets " #2", " #3".
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.extend import core
from jax.extend.core.primitives import name_p
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
def capture_torch(module: nn.Module, output_name: str = "output") -> Iterator[list[TorchPass]]:
    """Records every forward pass of `module` (and the backward pass through it) within the context.

    Names are those of `module.named_modules()`, and `output_name` for what `module` itself returns; several tensors of
    one module are "name.0", "name.1". Values are copied at once: a later operation in place does not change them.
    """
    passes: list[TorchPass] = []

    def begin(*_: Any) -> None:
        passes.append(TorchPass())

    def record(name: str, output: Any) -> None:
        current = passes[-1]
        if current.done:
            return
        if isinstance(output, tuple | list):
            for number, part in enumerate(output):
                record(f"{name}.{number}", part)
        elif isinstance(output, torch.Tensor):
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


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A copy on the host; bfloat16, which torch cannot hand to NumPy, goes over its bits."""
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


def evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], visit: Visit) -> list[Any]:
    """Evaluates a jaxpr; `visit(name, value)` sees each tagged value and returns the value to go on with.

    Goes into every inner function that holds tags (jit, remat, custom derivatives, scan, unrolled) and leaves the
    others as they are. A function with a custom derivative and tags in it is differentiated through its body.
    """
    values: dict[core.Var, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if eqn.primitive is name_p:
            outputs = [visit(eqn.params["name"], inputs[0])]
        elif not has_tags(core.jaxprs_in_params(eqn.params)):
            outputs = bind(eqn, inputs)
        elif eqn.primitive.name == "scan":
            outputs = unroll(eqn, inputs, visit)
        elif (inner := inner_function(eqn)) is not None:
            outputs = evaluate(inner.jaxpr, inner.consts, inputs, visit)
        else:
            outputs = bind(eqn, inputs)  # a loop of unknown length or a branch: its tags have no one value
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def has_tags(jaxprs: Iterator[core.Jaxpr]) -> bool:
    """Whether any of the jaxprs holds a tag, at any depth."""
    return any(
        eqn.primitive is name_p or has_tags(core.jaxprs_in_params(eqn.params)) for jaxpr in jaxprs for eqn in jaxpr.eqns
    )


def inner_function(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The function that an equation calls once with its own inputs, if that is what it does."""
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(inner, core.Jaxpr) and not isinstance(inner, core.ClosedJaxpr):  # one class in newer JAX
        inner = core.ClosedJaxpr(inner, ())
    return inner if isinstance(inner, core.ClosedJaxpr) and len(inner.jaxpr.invars) == len(eqn.invars) else None


def bind(eqn: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
    """One equation, unchanged, with its own rule of differentiation."""
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def unroll(eqn: core.JaxprEqn, inputs: list[Any], visit: Visit) -> list[Any]:
    """A scan as a Python loop; the tags of iteration i become "name[i]"."""
    p = eqn.params
    n_consts, n_carry = scan_sizes(p)
    consts, carry, stacked = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]
    rows: dict[int, list[Any]] = {}
    for i in range(p["length"])[:: -1 if p["reverse"] else 1]:

        def visit_iteration(name: str, value: jax.Array, i: int = i) -> jax.Array:
            return visit(f"{name}[{i}]", value)

        args = [*consts, *carry, *(x[i] for x in stacked)]
        outputs = evaluate(p["jaxpr"].jaxpr, p["jaxpr"].consts, args, visit_iteration)
        carry, rows[i] = outputs[:n_carry], outputs[n_carry:]
    return [*carry, *(jnp.stack(column) for column in zip(*(rows[i] for i in sorted(rows)), strict=True))]


def scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many the carry; newer JAX (0.11.2) counts in a flat tree."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def fresh(name: str, taken: dict[str, Any]) -> str:
    """`name`, or with a number where it is taken."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} #{number}"
    return candidate
