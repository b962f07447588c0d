"""Faults of parameters and optimizer state that are sharded over devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_impl import fsdp, optimizer, parallel
from jax_impl.optimizer import CLIP_EPS
from parity.faults.fault import Fault, swap

sharded_gradients, place_examples = fsdp.sharded_gradients, parallel._place_examples

FSDP = "--devices 2 --parallel fsdp"


def gradients_of(change: Any) -> Any:
    """The sharded gradients with something changed: `change(grads, mesh)`."""

    def faulty(mesh: Any, dtype: Any) -> Any:
        right = sharded_gradients(mesh, dtype)

        def gradients(*args: Any) -> Any:
            sums, buffers, grads = right(*args)
            return sums, buffers, change(grads, mesh)

        return gradients

    return swap(sharded_gradients, faulty)


def through_bfloat16(grads: Any, mesh: Any) -> Any:
    return jax.tree.map(lambda g: g.astype(jnp.bfloat16).astype(g.dtype), grads)


def targets_of_another_device(x: np.ndarray, mesh: Any, axis: int) -> jax.Array:
    """The shards of targets, which are integers of the same shape as the tokens, in reverse order."""
    return place_examples(np.roll(x, x.shape[axis] // mesh.size, axis) if x.min() < 0 else x, mesh, axis)


def norm_of_one_shard(grads: Any, max_norm: float) -> Any:
    """The norm of what the first of two devices holds."""
    halves = jax.tree.map(lambda g: g[: max(1, g.shape[0] // 2)], grads)
    factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(halves) + CLIP_EPS))
    return jax.tree.map(lambda g: g * factor, grads), optax.tree.norm(grads)


FAULTS = (
    Fault(
        "sharded gradient averaged twice",
        "embedding",
        "gradients",
        "the reduce-scatter's sum of what is already a mean is divided by the number of devices",
        gradients_of(lambda grads, mesh: jax.tree.map(lambda g: g / mesh.size, grads)),
        flags=FSDP,
    ),
    Fault(
        "gradients reduced in bfloat16",
        "embedding",
        "gradients",
        "the reduce-scatter's numbers are rounded to eight bits",
        gradients_of(through_bfloat16),
        flags=FSDP,
    ),
    Fault(
        "parameters gathered in bfloat16",
        "linear",
        "loss",
        "the all-gather's numbers are rounded to eight bits",
        swap(sharded_gradients, lambda mesh, dtype: sharded_gradients(mesh, jnp.dtype(jnp.bfloat16))),
        flags=FSDP,
    ),
    Fault(
        "targets of another device",
        "embedding",
        "loss",
        "inputs and targets are sharded in two orders",
        swap(place_examples, targets_of_another_device),
        flags=FSDP,
    ),
    Fault(
        "norm of one shard",
        "embedding",
        "clip",
        "the clip's norm is that of the parameters which one device holds",
        swap(optimizer.clip_by_global_norm, norm_of_one_shard),
        flags=FSDP,
    ),
)
