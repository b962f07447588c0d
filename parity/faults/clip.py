"""Faults of the clipping."""

from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_impl import optimizer
from parity.faults.fault import Fault, swap

clip_by_global_norm, make_transform = optimizer.clip_by_global_norm, optimizer.make_transform


def clip_each_leaf(max_norm: float) -> optax.GradientTransformation:
    def clipped(g: jax.Array) -> jax.Array:
        return g * jnp.minimum(1.0, max_norm / (jnp.linalg.norm(g) + optimizer.CLIP_EPS))

    return optax.stateless(lambda grads, params: jax.tree.map(clipped, grads))


def inside_multi_transform() -> Any:
    def faulty(config: Any, *args: Any) -> optax.GradientTransformation:
        return optax.chain(clip_by_global_norm(config.optimizer.clip_norm), make_transform(config, *args))

    stack = ExitStack()
    stack.enter_context(swap(clip_by_global_norm, lambda max_norm: optax.identity())())
    stack.enter_context(swap(make_transform, faulty)())
    return stack


FAULTS = (
    Fault(
        "clip without eps",
        "embedding",
        "clip",
        "max/norm for max/(norm + 1e-6): optax's clipping for torch's",
        swap(clip_by_global_norm, optax.clip_by_global_norm),
    ),
    Fault(
        "clip per group",
        "embedding",
        "clip",
        "clipping inside multi_transform: each group by its own norm (marin PR 6160)",
        inside_multi_transform,
    ),
    Fault("clip per tensor", "mlp", "clip", "each leaf by its own norm", swap(clip_by_global_norm, clip_each_leaf)),
    Fault(
        "clip by value",
        "linear",
        "clip",
        "elements cut off at the largest norm",
        swap(clip_by_global_norm, lambda max_norm: optax.clip(max_norm / 10)),
    ),
    Fault(
        "no clipping",
        "gpt",
        "clip",
        "the clip is left out",
        swap(clip_by_global_norm, lambda max_norm: optax.identity()),
    ),
)
