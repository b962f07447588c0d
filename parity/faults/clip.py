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


def always_scaled(grads: Any, max_norm: float) -> Any:
    return jax.tree.map(lambda g: g * (max_norm / (optax.tree.norm(grads) + optimizer.CLIP_EPS)), grads)


def by_squared_norm(grads: Any, max_norm: float) -> Any:
    factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) ** 2 + optimizer.CLIP_EPS))
    return jax.tree.map(lambda g: g * factor, grads)


def without_the_embedding(grads: Any, max_norm: float) -> Any:
    norm = optax.tree.norm({name: g for name, g in grads.items() if name != "embedding"})
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / (norm + optimizer.CLIP_EPS)), grads)


def by_twice_the_norm(grads: Any, max_norm: float) -> Any:
    """Norm and factor are those of the sum over two micro-steps."""
    clipped, norm = clip_by_global_norm(jax.tree.map(lambda g: 2 * g, grads), max_norm)
    return jax.tree.map(lambda g: g / 2, clipped), norm


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
    Fault(
        "clip factor not limited to 1",
        "linear",
        "clip",
        "small gradients are scaled up to the limit",
        clipping(always_scaled),
        flags="--clip-norm 10",
    ),
    Fault(
        "clip norm of 0 taken as a limit",
        "embedding",
        "clip",
        "0 means no clipping, and all gradients vanish",
        clipping(always_scaled),
        flags="--clip-norm 0",
    ),
    Fault(
        "clip by the squared norm",
        "mlp",
        "clip",
        "the root is left out",
        clipping(by_squared_norm),
    ),
    Fault(
        "clip without the embedding",
        "embedding",
        "clip",
        "the norm is that of the matrices",
        clipping(without_the_embedding),
    ),
    Fault(
        "norm of the sum over micro-steps",
        "linear",
        "clip",
        "the norm is taken before the division by the targets' number",
        swap(clip_by_global_norm, by_twice_the_norm),
    ),
)
