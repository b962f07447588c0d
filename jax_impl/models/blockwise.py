"""Causal attention block by block, with a derivative of its own: `causal_attention` where there is no faster kernel.

Plain attention computes all T x S scores and keeps the weights for the backward pass. Here a sequence is cut into
blocks of queries, and each attends to the keys up to its own end: nearly half of all products are masked and so
never computed, scores exist for one block at a time, and the backward pass computes them again (arXiv:2205.14135).

Shapes: B batch, T query time, S key time, H query heads, K key/value heads, G = H/K queries per key head, C head
channels, X = G times a block's length: its queries that share a key head.
"""

from typing import Any

import jax
import jax.numpy as jnp

SHORTEST_BLOCK = 128  # in shorter blocks matrix products are inefficient
MOST_BLOCKS = 8  # each is compiled on its own; more than eight would save at most another sixteenth of the work


def blockwise_attention(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    """`causal_attention` of a whole sequence, S = T; returns (B, T, H, C)."""
    k_BKSC, v_BKSC = k_BSKC.transpose(0, 2, 1, 3), v_BSKC.transpose(0, 2, 1, 3)
    return _ungrouped(_attention(_grouped(q_BTHC, k_BSKC.shape[2]), k_BKSC, v_BKSC))


def _grouped(q_BTHC: jax.Array, key_heads: int) -> jax.Array:
    """Queries by the key head that they share, (B, K, G, T, C)."""
    B, T, H, C = q_BTHC.shape
    return q_BTHC.reshape(B, T, key_heads, H // key_heads, C).transpose(0, 2, 3, 1, 4)


def _ungrouped(y_BKGTC: jax.Array) -> jax.Array:
    """The inverse of `_grouped`, (B, T, H, C)."""
    B, K, G, T, C = y_BKGTC.shape
    return y_BKGTC.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, C)


@jax.custom_vjp
def _attention(q_BKGTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array) -> jax.Array:
    return _forward(q_BKGTC, k_BKSC, v_BKSC)[0]


def _forward(q_BKGTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array) -> tuple[jax.Array, Any]:
    """The result, and for the backward pass q, k, v, the result and the logsumexp of each query's scores."""
    B, K, G, T, C = q_BKGTC.shape
    dtype, wide = q_BKGTC.dtype, jnp.promote_types(q_BKGTC.dtype, jnp.float32)
    blocks_y, blocks_logsum = [], []
    for first, last in _blocks(T):
        q_BKXC = _cut(q_BKGTC, first, last)
        scores_BKXS = jnp.einsum("bkxc,bksc->bkxs", q_BKXC, k_BKSC[:, :, :last], preferred_element_type=wide)
        sees_XS = jnp.arange(last)[None, :] <= _positions(G, first, last)[:, None]
        scores_BKXS = jnp.where(sees_XS, scores_BKXS, -jnp.inf)
        largest_BKX1 = jnp.max(scores_BKXS, axis=-1, keepdims=True)
        weights_BKXS = jnp.exp(C**-0.5 * (scores_BKXS - largest_BKX1))
        sum_BKX1 = jnp.sum(weights_BKXS, axis=-1, keepdims=True)
        y_BKXC = jnp.einsum(
            "bkxs,bksc->bkxc", weights_BKXS.astype(dtype), v_BKSC[:, :, :last], preferred_element_type=wide
        )
        blocks_y.append((y_BKXC / sum_BKX1).astype(dtype).reshape(B, K, G, -1, C))
        blocks_logsum.append((C**-0.5 * largest_BKX1 + jnp.log(sum_BKX1)).reshape(B, K, G, -1))
    y_BKGTC = jnp.concatenate(blocks_y, axis=3)
    return y_BKGTC, (q_BKGTC, k_BKSC, v_BKSC, y_BKGTC, jnp.concatenate(blocks_logsum, axis=3))


def _backward(saved: Any, dy_BKGTC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v.

    With weights W, scores S and y = W v: dv = W^T dy, dW = dy v^T, dS = W (dW - sum(y dy)). Weights and scores are
    held transposed, keys by queries: then dq, which is narrow, is the only array to be transposed.
    """
    q_BKGTC, k_BKSC, v_BKSC, y_BKGTC, logsum_BKGT = saved
    B, K, G, T, C = q_BKGTC.shape
    dtype, wide = q_BKGTC.dtype, jnp.promote_types(q_BKGTC.dtype, jnp.float32)
    y_dy_BKGT = jnp.sum(y_BKGTC.astype(wide) * dy_BKGTC.astype(wide), axis=-1)
    dk_BKSC, dv_BKSC = jnp.zeros(k_BKSC.shape, wide), jnp.zeros(v_BKSC.shape, wide)
    blocks_dq = []
    for first, last in _blocks(T):
        q_BKXC, dy_BKXC = _cut(q_BKGTC, first, last), _cut(dy_BKGTC, first, last)
        logsum_BK1X, y_dy_BK1X = (_cut(x, first, last)[:, :, None] for x in (logsum_BKGT, y_dy_BKGT))
        k, v = k_BKSC[:, :, :last], v_BKSC[:, :, :last]
        scores_BKSX = jnp.einsum("bksc,bkxc->bksx", k, q_BKXC, preferred_element_type=wide)
        sees_SX = jnp.arange(last)[:, None] <= _positions(G, first, last)
        weights_BKSX = jnp.where(sees_SX, jnp.exp(C**-0.5 * scores_BKSX - logsum_BK1X), 0)
        dweights_BKSX = jnp.einsum("bksc,bkxc->bksx", v, dy_BKXC, preferred_element_type=wide)
        dscores_BKSX = (C**-0.5 * weights_BKSX * (dweights_BKSX - y_dy_BK1X)).astype(dtype)
        dv = jnp.einsum("bksx,bkxc->bksc", weights_BKSX.astype(dtype), dy_BKXC, preferred_element_type=wide)
        dk = jnp.einsum("bksx,bkxc->bksc", dscores_BKSX, q_BKXC, preferred_element_type=wide)
        dq_BKCX = jnp.einsum("bksc,bksx->bkcx", k, dscores_BKSX)
        dk_BKSC, dv_BKSC = dk_BKSC.at[:, :, :last].add(dk), dv_BKSC.at[:, :, :last].add(dv)
        blocks_dq.append(dq_BKCX.mT.reshape(B, K, G, -1, C))
    return jnp.concatenate(blocks_dq, axis=3), dk_BKSC.astype(dtype), dv_BKSC.astype(dtype)


_attention.defvjp(_forward, _backward)


def _blocks(length: int) -> list[tuple[int, int]]:
    """First and last + 1 of each block of queries."""
    size = max(SHORTEST_BLOCK, -(-length // MOST_BLOCKS))
    return [(first, min(first + size, length)) for first in range(0, length, size)]


def _cut(x_BKGT: jax.Array, first: int, last: int) -> jax.Array:
    """The block of (B, K, G, T, ...) as (B, K, X, ...)."""
    B, K, G = x_BKGT.shape[:3]
    return x_BKGT[:, :, :, first:last].reshape(B, K, G * (last - first), *x_BKGT.shape[4:])


def _positions(groups: int, first: int, last: int) -> jax.Array:
    """The time (X,) of each query of a block."""
    return jnp.tile(jnp.arange(first, last), groups)
