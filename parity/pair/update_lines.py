"""Which line of an optimizer's step is wrong: the first step that is, taken once more by both sides, recorded."""

from collections.abc import Mapping
from typing import Any

from parity.lines.answer import in_words
from parity.lines.find import find
from parity.lines.graph import Graph
from parity.lines.line import Lines
from parity.lines.record_jax import record_jax
from parity.lines.record_torch import record_torch
from parity.pair.training import TorchTraining
from parity.pair.updates import Updates
from parity.widen_jax import widened

NEW, GRADIENT = "new ", "gradient of "


def update_lines(updates: Updates) -> Lines | None:
    """The first wrong line of each side for a divergence of updates or new parameters; None for any other.

    Both steps start from torch's clipped gradients and parameters, as the stages do.
    """
    first = updates.ledger.judge()[2]
    if first is None or first.stage not in ("update", "parameters") or updates.recipe.optimizers is None:
        return None
    training, optimizer = TorchTraining(updates.original(), updates.recipe), updates.optimizer
    fed = [(name, leaf) for leaf, source in updates.what.carried.sources.items() for name in source.names]
    pairs = [(f"{NEW}{name}", f"{NEW}{leaf}") for name, leaf in fed if name in updates.compared]
    state = optimizer.start(updates.leaves)[1]
    for step in range(min(first.step + 2, updates.recipe.steps)):  # a wrong moment shows in the parameters one later
        at = updates.at(training.model.parameters())
        training.backward(step)
        if step < first.step:
            clipped = training.update(step)
        else:
            ours, clipped = torch_graph(training, step)
            found = find(ours, jax_graph(updates, updates.gradients(clipped), state, at), pairs)
            if found is not None:
                return in_words(found)
        state = optimizer.update(updates.gradients(clipped), state, at).state
    return None


def torch_graph(training: TorchTraining, step: int) -> tuple[Graph, dict[str, Any]]:
    """Every operation of clipping and the optimizer's step; and the gradients in between."""
    named = dict(training.model.module.named_parameters())
    clipped: dict[str, Any] = {}

    def run() -> dict[str, Any]:
        clipped.update(training.update(step))
        return {f"{NEW}{name}": p for name, p in named.items()}

    gradients = {f"{GRADIENT}{name}": p.grad for name, p in named.items() if p.grad is not None}
    return record_torch(run, {**named, **gradients}, {}), clipped


def jax_graph(updates: Updates, gradients: Mapping[str, Any], state: Any, at: Mapping[str, Any]) -> Graph:
    """Every operation of the port's optimizer."""
    step_fn = widened(updates.optimizer.step_tree)

    def run(leaves: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{NEW}{leaf}": x for leaf, x in step_fn(dict(inputs), state, dict(leaves))[2].items()}

    return record_jax(run, at, gradients)
