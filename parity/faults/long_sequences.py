"""Faults that show beyond the first block of attention, 128 positions, only.

Shapes: B batch, K key/value heads, S key time, C head channels, X queries that share a key head.
"""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl.models import blockwise, gpt
from parity.faults.fault import Fault, swap

scores, product, rotary_table = blockwise._scores, blockwise._product, gpt.rotary_table

LONG = "--sequence-len 256 --batch-size 2 --depth 1"


def scored(change: Any) -> Any:
    """Other scores of a block of queries that begins at `first`: `change(q, k, first)`."""
    return lambda: mock.patch.object(blockwise, "_scores", change)


def unmasked_after_the_first_block(q_BKXC: jax.Array, k_BKSC: jax.Array, first: int) -> jax.Array:
    return scores(q_BKXC, k_BKSC, first) if first == 0 else product("bksc,bkxc->bksx", k_BKSC, q_BKXC)


def mask_without_the_offset(q_BKXC: jax.Array, k_BKSC: jax.Array, first: int) -> jax.Array:
    """Query 128 is masked as query 0 is: it sees the first key alone."""
    scores_BKSX = product("bksc,bkxc->bksx", k_BKSC, q_BKXC)
    S, X = scores_BKSX.shape[2:]
    sees_SX = jnp.arange(S)[:, None] <= jnp.arange(X) // (X // (S - first))
    return jnp.where(sees_SX, scores_BKSX, -jnp.inf)


def own_block_only(q_BKXC: jax.Array, k_BKSC: jax.Array, first: int) -> jax.Array:
    return scores(q_BKXC, k_BKSC, first).at[:, :, :first].set(-jnp.inf)


def differentiated(change: Any) -> Any:
    """Another derivative: `change(saved, dy, gradients)` makes it from the right gradients of q, k and v."""

    def backward(saved: Any, dy_BKXC: jax.Array) -> Any:
        return change(saved, dy_BKXC, blockwise._backward(saved, dy_BKXC))

    attention = jax.custom_vjp(lambda q, k, v: blockwise._forward(q, k, v)[0])
    attention.defvjp(blockwise._forward, backward)
    return lambda: mock.patch.object(blockwise, "_attention", attention)


def from_own_block_only(saved: Any, dy_BKXC: jax.Array, gradients: Any) -> Any:
    """The first block's keys and values: what the queries of later blocks add to their gradient is lost."""
    q_BKXC, k_BKSC, v_BKSC, y_BKXC, logsum_BK1X = saved
    S = blockwise.SHORTEST_BLOCK
    X = q_BKXC.shape[2] // k_BKSC.shape[2] * S
    first = q_BKXC[:, :, :X], k_BKSC[:, :, :S], v_BKSC[:, :, :S], y_BKXC[:, :, :X], logsum_BK1X[..., :X]
    _, dk_BKSC, dv_BKSC = blockwise._backward(first, dy_BKXC[:, :, :X])
    return gradients[0], gradients[1].at[:, :, :S].set(dk_BKSC), gradients[2].at[:, :, :S].set(dv_BKSC)


def first_block_alone(saved: Any, dy_BKXC: jax.Array, gradients: Any) -> Any:
    """The gradient of later queries is lost."""
    X = saved[0].shape[2] // saved[1].shape[2] * blockwise.SHORTEST_BLOCK
    return gradients[0].at[:, :, X:].set(0), *gradients[1:]


def placed(positions: Any) -> Any:
    """A rotary table read at other positions."""
    return swap(rotary_table, lambda config, length: tuple(t[positions(length)] for t in rotary_table(config, length)))


def angles_in_float32(config: Any, length: int) -> Any:
    frequency = np.float32(config.rope_theta) ** -(np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim)
    angle_TC = np.outer(np.arange(length, dtype=np.float32), frequency)
    dtype = getattr(jnp, config.rotary_dtype)
    return np.cos(angle_TC).astype(dtype), np.sin(angle_TC).astype(dtype)


FAULTS = (
    Fault(
        "no mask after the first block",
        "gpt",
        "activations",
        "the queries of later blocks see the keys to the end of their block",
        scored(unmasked_after_the_first_block),
        flags=LONG,
    ),
    Fault(
        "mask without the block's offset",
        "gpt",
        "activations",
        "query 128 is masked as query 0 is",
        scored(mask_without_the_offset),
        flags=LONG,
    ),
    Fault(
        "blocks see themselves only",
        "gpt",
        "activations",
        "the keys of earlier blocks are left out",
        scored(own_block_only),
        flags=LONG,
    ),
    Fault(
        "keys without later blocks' gradient",
        "gpt",
        "gradients",
        "the gradients of keys and values are set by a block, not added to those of the blocks before",
        differentiated(from_own_block_only),
        flags=LONG,
    ),
    Fault(
        "later queries without a gradient",
        "gpt",
        "gradients",
        "the derivative goes over the first block alone",
        differentiated(first_block_alone),
        flags=LONG,
    ),
    Fault(
        "rotary positions start again at 128",
        "gpt",
        "activations",
        "the position within a block for the position",
        placed(lambda length: np.arange(length) % 128),
        flags=LONG,
    ),
    Fault(
        "rotary table too short",
        "gpt",
        "activations",
        "JAX reads past the end of an array as its last row: all positions from 128 on are one",
        placed(lambda length: np.minimum(np.arange(length), 127)),
        flags=LONG,
    ),
    Fault(
        "rotary angles in float32",
        "gpt",
        "activations",
        "position times frequency rounded to 24 bits: off by 1e-5 at position 200",
        swap(rotary_table, angles_in_float32),
        flags=LONG,
    ),
)
