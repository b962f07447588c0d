"""Updates from torch's gradients and parameters, step by step; beside them a run of the port's own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax
import torch

from parity.broken import of_port
from parity.entries import GIVEN, Key
from parity.ledger import Ledger
from parity.pair.carrying import Carried
from parity.pair.models import JaxModel
from parity.pair.moments import compare_moments
from parity.pair.torch_model import TorchModel

Optimizers = tuple[Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer], optax.GradientTransformation]


def compare_updates(
    ledger: Ledger,
    reference: TorchModel,
    port: JaxModel,
    carried: Carried,
    leaves: Mapping[str, Any],
    buffers: Mapping[str, Any],
    optimizers: Optimizers,
    steps: int,
) -> None:
    """Updates, moments, new parameters and a free run, under torch's names.

    Of a parameter that feeds two leaves, or is added to another in one, the update is not that of a leaf: left out.
    """
    optimizer, transformation = optimizers[0](reference.module.parameters()), optimizers[1]
    trained = list(reference.module.named_parameters())
    compared = carried.copied() & {name for name, _ in trained}
    ledger.now("update", "optimizer")

    # An optimizer takes no functions or strings among its leaves: beside those it gets the arrays by name.
    whole = len(jax.tree.leaves(port.build(leaves))) == len(leaves)
    tree: Callable[[Mapping[str, Any]], Any] = port.build if whole else dict

    @of_port()
    @jax.jit
    def step_fn(grads: Any, state: Any, params: Any) -> tuple[Any, Any, Any]:
        updates, state = transformation.update(tree(grads), state, tree(params))
        return flat(updates, leaves), state, flat(optax.apply_updates(tree(params), updates), leaves)

    state = free_state = of_port()(transformation.init)(tree(leaves))
    free: Mapping[str, Any] = leaves
    zeros = {name: np.zeros(shape) for name, shape in carried.shapes.items()}
    for step in range(steps):
        ledger.now("update", "optimizer", step)
        before = reference.parameters()
        passed = reference.run()
        optimizer.step()
        after = reference.parameters()

        none = {leaf: np.zeros_like(x) for leaf, x in leaves.items()}
        gradients = like(leaves, carried.gradients({**zeros, **passed.param_gradients}, none))
        at = like(leaves, carried.leaves({**zeros, **before}, {leaf: np.asarray(x) for leaf, x in leaves.items()}))
        updates, state, new = step_fn(gradients, state, at)
        moved = {name: after[name] - before[name] for name in after}
        compare_named(ledger, "update", step, moved, carried.back(updates), compared)
        compare_moments(ledger, step, carried, compared, trained, optimizer, state)
        compare_named(ledger, "parameters", step, after, carried.back(new), compared)

        found = port.run(free, buffers)
        _, free_state, free = step_fn(like(leaves, found.param_gradients), free_state, free)
        ledger.enter(Key("trajectory", "loss", GIVEN, "loss"), step, passed.loss, found.loss)
        compare_named(ledger, "trajectory", step, after, carried.back(free), compared)


def flat(tree: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """A tree like the parameters by the names of their leaves."""
    if isinstance(tree, dict) and tree.keys() == names.keys():
        return tree
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def like(leaves: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JAX arrays of the leaves' types."""
    return {leaf: jax.numpy.asarray(values[leaf], x.dtype) for leaf, x in leaves.items()}


def compare_named(
    ledger: Ledger, stage: str, step: int, ours: Mapping[str, Any], theirs: Mapping[str, Any], names: set[str]
) -> None:
    """Enter every array of these names beside the one of the same name."""
    for name, array in ours.items():
        if name in names:
            ledger.enter(Key(stage, name, GIVEN, "parameter"), step, array, np.asarray(theirs[name], array.dtype))
