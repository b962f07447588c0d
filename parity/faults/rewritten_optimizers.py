"""Optimizers written otherwise that compute the same, and keep their moments in other layouts: no alarm is right.

Shapes: R rows, Q columns.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_impl import muon as ours
from jax_impl import optimizer, schedule
from jax_impl.muon import orthogonalize_tree
from jax_impl.schedule import decay_multiplier
from parity.faults.fault import Fault, swap

make_transform, lr_multiplier = optimizer.make_transform, schedule.lr_multiplier


def own_adam(config: Any, group: Any, *args: Any) -> optax.GradientTransformation:
    """AdamW in one function, its state a dict of its own."""
    if group.algorithm != "adamw":
        return make_transform(config, group, *args)
    o, steps = config.optimizer, config.train.steps

    def init(params: Any) -> Any:
        return {"t": jnp.zeros([]), "averages": [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]}

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        t = state["t"] + 1
        rate = group.learning_rate * lr_multiplier(o, steps, t - 1)
        decay = group.weight_decay * decay_multiplier(o, steps, t - 1)
        m = jax.tree.map(lambda m, g: m + (1 - o.beta1) * (g - m), state["averages"][0], grads)
        v = jax.tree.map(lambda v, g: v + (1 - o.beta2) * (g * g - v), state["averages"][1], grads)
        size = jnp.sqrt(1 - o.beta2**t)
        updates = jax.tree.map(
            lambda m, v, p: -rate * (decay * p + m * (size / (1 - o.beta1**t)) / (jnp.sqrt(v) + o.eps * size)),
            m,
            v,
            params,
        )
        return updates, {"t": t, "averages": [m, v]}

    return optax.GradientTransformation(init, update)


def muon_that_keeps(keep: Any, given: Any) -> Any:
    """Muon whose state is `keep(momentum)` by name, from which `given(kept)` makes the momentum again."""

    def faulty(learning_rate: Any, momentum: Any, weight_decay: Any, *, steps: int, dtype: Any, **layout: Any) -> Any:
        def init(params: Any) -> Any:
            return {"count": jnp.int32(0), "kept": keep(jax.tree.map(jnp.zeros_like, params))}

        def update(grads: Any, state: Any, params: Any = None) -> Any:
            mu, lr, decay = (curve(state["count"]) for curve in (momentum, learning_rate, weight_decay))
            buffers = jax.tree.map(lambda m, g: m + (1 - mu) * (g - m), given(state["kept"], grads), grads)
            directions = jax.tree.map(lambda m, g: g + mu * (m - g), buffers, grads)
            pushed = orthogonalize_tree(directions, steps, dtype, **layout)
            updates = jax.tree.map(lambda o, p: (p * (1 - lr * decay) - lr * o) - p, pushed, params)
            return updates, {"count": state["count"] + 1, "kept": keep(buffers)}

        return optax.GradientTransformation(init, update)

    return swap(ours.muon, faulty)


def transposed(tree: Any, like: Any = None) -> Any:
    return jax.tree.map(jnp.transpose, tree)


def stacked(tree: Any) -> dict[str, jax.Array]:
    leaves = jax.tree.leaves(tree)
    found = sorted({leaf.shape for leaf in leaves})
    return {str(shape): jnp.stack([leaf for leaf in leaves if leaf.shape == shape]) for shape in found}


def unstacked(stacks: dict[str, jax.Array], like: Any) -> Any:
    rows = {shape: iter(stack) for shape, stack in stacks.items()}
    return jax.tree.map(lambda g: next(rows[str(g.shape)]), like)


def by_columns(x_RQ: jax.Array, steps: int, dtype: jnp.dtype) -> jax.Array:
    """Newton-Schulz with A = X^T X on the tall orientation, its polynomial multiplied from the right."""
    a, b, c = ours.COEFFICIENTS
    x_RQ = x_RQ.astype(dtype)
    wide = x_RQ.shape[-2] < x_RQ.shape[-1]
    x_RQ = x_RQ.mT if wide else x_RQ
    x_RQ = x_RQ / (jnp.sqrt(jnp.sum(jnp.square(x_RQ), axis=(-2, -1), keepdims=True)) + ours.EPS)
    for _ in range(steps):
        a_QQ = x_RQ.mT @ x_RQ
        x_RQ = x_RQ @ (a * jnp.eye(a_QQ.shape[-1], dtype=dtype) + (b * jnp.eye(a_QQ.shape[-1]) + c * a_QQ) @ a_QQ)
    return x_RQ.mT if wide else x_RQ


def interpolated(config: Any, steps: int, at: Any) -> jax.Array:
    warmup, warmdown = round(config.warmup_fraction * steps), round(config.warmdown_fraction * steps)
    knots = jnp.array([-1.0, warmup - 1, steps - warmdown, steps])
    return jnp.interp(jnp.asarray(at, float), knots, jnp.array([0.0, 1.0, 1.0, config.final_lr_fraction]))


FAULTS = (
    Fault(
        "AdamW by hand",
        "embedding",
        None,
        "one function with a state of its own: a list of two trees, and a count that is a float",
        swap(make_transform, own_adam),
        "the check looks for moments by what an update does to them, not by name",
    ),
    Fault(
        "momentum in stacks",
        "gpt",
        None,
        "the state holds one array for all matrices of one shape",
        muon_that_keeps(stacked, unstacked),
        "each row is the momentum of one parameter",
    ),
    Fault(
        "momentum transposed",
        "embedding",
        None,
        "the state holds it as (in, out)",
        muon_that_keeps(transposed, transposed),
        "the same numbers in another layout",
    ),
    Fault(
        "Newton-Schulz by columns",
        "gpt",
        None,
        "X (a I + b A + c A^2) with A = X^T X on the tall orientation",
        swap(ours.orthogonalize, by_columns),
        "a polynomial of X X^T times X is one of X^T X from the right",
    ),
    Fault(
        "schedule by interpolation",
        "embedding",
        None,
        "`jnp.interp` between the schedule's corners",
        swap(lr_multiplier, interpolated),
        "it is linear between them",
    ),
)
