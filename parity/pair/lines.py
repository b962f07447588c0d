"""Which line of a pair is wrong: both sides are run once more, with every operation recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from parity.lines.find import Found, Suspect, find
from parity.lines.graph import Graph
from parity.lines.line import Lines
from parity.lines.record_jax import record_jax
from parity.lines.record_torch import record_torch
from parity.pair.models import JaxModel, TorchModel, output_name
from parity.pair.outputs import floating
from parity.pair.stages import Compared
from parity.result import Divergence, TensorResult


def wrong_lines(
    judged: tuple[Any, Sequence[TensorResult], Divergence | None],
    what: Compared,
    reference: TorchModel,
    port: JaxModel,
    leaves: Mapping[str, Any],
    buffers: Mapping[str, Any],
) -> Lines | None:
    """The first wrong line of each side, for a divergence of outputs, loss or gradients; None for any other.

    judged: what the ledger says of the pass: stages, tensors and the first divergence.
    """
    _, tensors, first = judged
    results = [] if first is None else wrong_results(first, tensors, what)
    backward = first is not None and first.stage == "gradients"
    if not results:
        return None
    sides = torch_graph(reference, backward), jax_graph(port, leaves, buffers, backward)
    found = find(*sides, results, backward)
    return None if found is None else in_words(found)


def wrong_results(first: Divergence, tensors: Sequence[TensorResult], what: Compared) -> list[tuple[str, str]]:
    """The results that differ at the stage, by the names that both graphs have them under."""
    wrong = {t.tensor for t in tensors if t.stage == first.stage and "diverges" in t.status}
    if first.stage == "loss":
        return [("loss", "loss")]
    if first.stage == "activations":
        outputs = [(output_name(one.torch), output_name(one.jax)) for one in what.outputs]
        return [pair for pair in outputs if pair[0] in wrong]
    if first.stage == "gradients":
        fed = [(name, leaf) for leaf, source in what.carried.sources.items() for name in source.names]
        return [(gradient(name), gradient(leaf)) for name, leaf in fed if name in wrong]
    return []


def gradient(name: str) -> str:
    """What the gradient of a parameter is called among the results."""
    return f"gradient of {name}"


def torch_graph(reference: TorchModel, backward: bool) -> Graph:
    """Every operation of one pass of torch's."""
    module = reference.module
    module.zero_grad(set_to_none=True)

    def run() -> dict[str, Any]:
        output, inputs = reference.call()
        found = {output_name(path): x for path, x in floating(output).items()}
        found["loss"] = reference.loss(output, *inputs.args, **inputs.kwargs)
        if backward:
            found["loss"].backward()
            found |= {gradient(n): p.grad for n, p in module.named_parameters() if p.grad is not None}
        return found

    leaves = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with reference.arithmetic():
        return record_torch(run, leaves, {})


def jax_graph(port: JaxModel, leaves: Mapping[str, Any], buffers: Mapping[str, Any], backward: bool) -> Graph:
    """Every operation of one pass of the port's."""
    moving = [name for name, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)]
    loss = port.arithmetic(port.tagged_loss)

    def run(leaves: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: leaves[name] for name in moving}
        fixed = {name: leaves[name] for name in leaves if name not in given and name not in buffers}
        rest = fixed, {name: leaves[name] for name in buffers}, list(inputs.values())
        if backward:
            (value, (outputs, _)), gradients = jax.value_and_grad(loss, has_aux=True)(given, *rest)
        else:
            (value, (outputs, _)), gradients = loss(given, *rest), {}
        found = {output_name(path): x for path, x in outputs.items()}
        return {**found, "loss": value, **{gradient(name): x for name, x in gradients.items()}}

    inputs = {f"input {number}": x for number, x in enumerate(port.inputs.arrays())}
    return record_jax(run, {**leaves, **buffers}, inputs)


def in_words(found: Found) -> Lines:
    """The answer, as a report shows it."""
    sides = {"torch": found.torch, "jax": found.jax}
    operations = {side: one.side.graph.nodes[one.node].op for side, one in sides.items() if one is not None}
    operands = {side: described(one) for side, one in sides.items() if one is not None}
    lines = {side: None if one is None else one.line for side, one in sides.items()}
    return Lines(lines["torch"], lines["jax"], operations, operands)


def described(one: Suspect) -> list[str]:
    """Each operand: its name, or the operation and line that made it; and whether it agrees."""
    said = []
    for operand in one.operands:
        node = one.side.graph.nodes[operand.node]
        name = node.name or (f"{node.op} of line {node.line.first}" if node.line else node.op)
        said.append(f"{name} ({operand.status})" if operand.status else name)
    return said
