"""Faults of the clipping."""

from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_impl import optimizer
from parity.faults.fault import Fault, swap

clip_by_global_norm, make_transform = optimizer.clip_by_global_norm, optimizer.make_transform


def clipping(clipped: Any) -> Any:
    """Clipping by `clipped(grads, max_norm)`; the reported norm stays right."""
    return swap(clip_by_global_norm, lambda grads, max_norm: (clipped(grads, max_norm), optax.tree.norm(grads)))


def by_optax(grads: Any, max_norm: float) -> Any:
    return optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())[0]


def each_leaf(grads: Any, max_norm: float) -> Any:
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / (jnp.linalg.norm(g) + optimizer.CLIP_EPS)), grads)


def inside_multi_transform() -> Any:
    """Each group clips its own gradients."""

    def faulty(config: Any, *args: Any) -> optax.GradientTransformation:
        clip = optax.stateless(lambda grads, _: clip_by_global_norm(grads, config.optimizer.clip_norm)[0])
        return optax.chain(clip, make_transform(config, *args))

    stack = ExitStack()
    stack.enter_context(clipping(lambda grads, max_norm: grads)())
    stack.enter_context(swap(make_transform, faulty)())
    return stack


FAULTS = (
    Fault(
        "clip without eps",
        "embedding",
        "clip",
        "max/norm for max/(norm + 1e-6): optax's clipping for torch's",
        clipping(by_optax),
    ),
    Fault(
        "clip per group",
        "embedding",
        "clip",
        "clipping inside multi_transform: each group by its own norm (marin PR 6160)",
        inside_multi_transform,
    ),
    Fault("clip per tensor", "mlp", "clip", "each leaf by its own norm", clipping(each_leaf)),
    Fault(
        "clip by value",
        "linear",
        "clip",
        "each element is clipped, not the norm",
        clipping(lambda grads, max_norm: jax.tree.map(lambda g: jnp.clip(g, -max_norm / 10, max_norm / 10), grads)),
    ),
    Fault(
        "no clipping",
        "gpt",
        "clip",
        "the clip is left out",
        clipping(lambda grads, max_norm: grads),
    ),
)
