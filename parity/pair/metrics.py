"""What both evaluations make of torch's outputs: the stage `evaluation`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from parity.broken import described, of_port
from parity.budget import Tolerance
from parity.entries import GIVEN, Key
from parity.envelope import watched_steps
from parity.ledger import Ledger
from parity.pair.inputs import Inputs
from parity.pair.loss import Output
from parity.pair.models import JaxModel, replaced
from parity.pair.outputs import floating
from parity.pair.recipe import Recipe, scalar, untraced
from parity.pair.torch_masks import recorded
from parity.pair.torch_model import TorchModel
from parity.stages import compare_evaluation
from parity.widen_jax import widened
from twinstep.errors import UserError

UNTRACED = Tolerance("relative", 1e-6, "a metric that JAX cannot trace computes as it is written, maybe in float32")

Numbers = dict[str, np.float64]


def compare_metrics(
    ledger: Ledger,
    recipe: Recipe,
    model: TorchModel,
    port: JaxModel,
    outputs: list[Output],
    leaves: Mapping[str, Any],
    buffers: Mapping[str, Any],
) -> None:
    """Of torch's outputs on each batch, at the weights as given: the port's metric gets them in its own layout.

    Raises UserError for torch's if it raises, PortError for JAX's.
    """
    if recipe.metrics is None:
        return
    for step in watched_steps(recipe.steps) if recipe.batches is not None else [0]:
        ledger.now("evaluation", "metrics", step)
        with model.arithmetic(), torch.no_grad(), recorded():
            output, inputs = replace(model, inputs=recipe.ours[step]).call()
            ours = torch_numbers(recipe.metrics[0], output, inputs)
        found = {one.jax: in_layout(floating(output)[one.torch], one) for one in outputs}
        theirs, traced = jax_numbers(
            recipe.metrics[1], replace(port, inputs=recipe.theirs[step]), leaves, buffers, found
        )
        if traced:
            compare_evaluation(ledger, GIVEN, step, ours, theirs, ours)
            continue
        for name in ledger.names("evaluation", GIVEN, step, ours, theirs):
            ledger.enter(Key("evaluation", name, GIVEN, name), step, ours[name], theirs[name], tolerance=UNTRACED)


def in_layout(x: torch.Tensor, one: Output) -> np.ndarray:
    """An output of torch's as the port has it."""
    array = x.detach().cpu().double().numpy()
    return array.transpose(one.axes) if one.axes else array


def torch_numbers(metric: Callable[..., Any], output: Any, inputs: Inputs) -> Numbers:
    """What torch's metric returns. Raises UserError if it raises."""
    try:
        found = metric(output, *inputs.args, **inputs.kwargs)
    except Exception as error:
        raise UserError(f"metrics[0] raises {described(error)}") from error
    return numbers(found, "metrics[0]")


def jax_numbers(
    metric: Callable[..., Any],
    port: JaxModel,
    leaves: Mapping[str, Any],
    buffers: Mapping[str, Any],
    found: Mapping[str, np.ndarray],
) -> tuple[Numbers, bool]:
    """What the port's metric makes of these outputs, in float64; whether it could be traced for that."""

    arrays = list(map(jnp.asarray, port.inputs.arrays()))

    with of_port():
        own = port.call(leaves, buffers, arrays)[0]

        def of_output(floats: Mapping[str, Any], arrays: list[Any]) -> Any:
            inputs = port.inputs.with_arrays(arrays)
            return metric(replaced(own, floats), *inputs.args, **inputs.kwargs)

        floats = {**floating(own), **{path: jnp.asarray(x) for path, x in found.items()}}
        result = untraced(widened(of_output), floats, arrays)
        traced = result is not None
        return numbers(result if traced else of_output(floats, arrays), "metrics[1]"), traced


def numbers(found: Any, what: str) -> Numbers:
    """By their names; "metric" for a bare number."""
    if not isinstance(found, Mapping):
        found = {"metric": found}
    if not found:
        raise UserError(f"{what} returns no number")
    return {str(name): scalar(x, f"{what}'s {name!r}") for name, x in found.items()}
