"""Faults between the optimizer and what the training step returns: the new state, and what it logs."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_impl import optimizer, step
from jax_impl.tree import flatten
from parity.faults.fault import Fault, swap

train_step, group_norms = step.train_step, optimizer.group_norms


def returning(change: Any) -> Any:
    """The step with something changed in what it returns: `change(before, after, metrics)`."""

    def faulty(config: Any, model: Any, optimizer: Any, state: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        after, metrics = train_step(config, model, optimizer, state, batch, *args, **kwargs)
        return change(state, after, metrics)

    return swap(train_step, faulty)


def update_rounded(before: Any, after: Any, metrics: Any) -> Any:
    rounded = jax.tree.map(lambda p, q: p + (q - p).astype(jnp.float32).astype(p.dtype), before.params, after.params)
    return after._replace(params=rounded), metrics


def averaged(before: Any, after: Any, metrics: Any) -> Any:
    params = jax.tree.map(lambda p, q: 0.001 * p + 0.999 * q, before.params, after.params)
    return after._replace(params=params), metrics


def new_key(before: Any, after: Any, metrics: Any) -> Any:
    key, _ = jax.random.split(jax.random.wrap_key_data(after.key))
    return after._replace(key=jax.random.key_data(key)), metrics


def same_step(before: Any, after: Any, metrics: Any) -> Any:
    return after._replace(step=before.step), metrics


def old_statistics(before: Any, after: Any, metrics: Any) -> Any:
    return after._replace(buffers=before.buffers), metrics


def squared_norms(before: Any, after: Any, metrics: Any) -> Any:
    return after, {**metrics, "leaf_norms": metrics["leaf_norms"] ** 2}


def norms_reversed(before: Any, after: Any, metrics: Any) -> Any:
    return after, {**metrics, "leaf_norms": metrics["leaf_norms"][::-1]}


def norm_after_clipping(before: Any, after: Any, metrics: Any) -> Any:
    return after, {**metrics, "grad_norm": jnp.minimum(metrics["grad_norm"], 0.1)}


def norms_of(params: Any, updates: Any) -> Any:
    """Group norms of `params(params, updates)` and `updates(params, updates)`."""
    return swap(group_norms, lambda config, p, u: group_norms(config, params(p, u), updates(p, u)))


def logged_late(config: Any, opt_state: Any) -> jax.Array:
    """The rate of the step before."""
    matrix = optax.tree.get(opt_state, "inner_states")["matrix"]
    _, count = optax.tree.get_all_with_path(matrix, "count")[0]
    group = optimizer.optimizer_groups(config)["matrix"]
    return optimizer.learning_rate_at(config, group, jnp.maximum(count - 1, 0))


def largest_of_a_group(config: Any, params: Any, updates: Any) -> Any:
    """The largest norm of a group's parameters for the norm of all."""
    labels = optimizer.label_parameters(config, list(flatten(params)))
    norms = {}
    for label in sorted(set(labels.values())):
        for kind, tree in (("param_norm", params), ("update_norm", updates)):
            leaves = [leaf for name, leaf in flatten(tree).items() if labels[name] == label]
            norms[f"{kind}/{label}"] = jnp.max(jnp.stack([jnp.linalg.norm(leaf) for leaf in leaves]))
    return norms


FAULTS = (
    Fault(
        "update rounded on its way",
        "embedding",
        "parameters",
        "the update passes through float32 between optimizer and parameters",
        returning(update_rounded),
    ),
    Fault(
        "parameters averaged",
        "linear",
        "parameters",
        "the step returns a running average of the parameters and trains on it",
        returning(averaged),
    ),
    Fault(
        "key replaced by the step",
        "mlp",
        "parameters",
        "the key is split and a half returned: it depends on the path then, not on the step's number",
        returning(new_key),
    ),
    Fault(
        "step not counted",
        "linear",
        "parameters",
        "the state's step number stays",
        returning(same_step),
    ),
    Fault(
        "statistics of the step before",
        "mlp",
        "parameters",
        "the step returns the buffers that it was given",
        returning(old_statistics),
    ),
    Fault(
        "leaf norms squared",
        "embedding",
        "clip",
        "the root is left out of what is logged for each parameter",
        returning(squared_norms),
    ),
    Fault(
        "leaf norms in another order",
        "mlp",
        "clip",
        "norms and names come from two orders of the parameters",
        returning(norms_reversed),
    ),
    Fault(
        "norm logged after clipping",
        "linear",
        "clip",
        "the gradient's norm is logged as it is after the clip",
        returning(norm_after_clipping),
    ),
    Fault(
        "parameters' norm after the update",
        "embedding",
        "update",
        "the logged norm is of the new parameters",
        norms_of(optax.apply_updates, lambda p, u: u),
    ),
    Fault(
        "largest norm for the norm of a group",
        "mlp",
        "update",
        "one parameter's norm is logged for its group's",
        swap(group_norms, largest_of_a_group),
    ),
    Fault(
        "rate logged one step late",
        "embedding",
        "schedule",
        "the rate that is logged is that of the step before",
        swap(optimizer.logged_learning_rate, logged_late),
    ),
)
