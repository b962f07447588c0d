"""Causal attention block by block, with a derivative of its own: `causal_attention` where there is no faster kernel.

Plain attention computes all T x S scores and keeps the weights for the backward pass. Here a sequence is cut into
blocks of queries, and each attends to the keys up to its own end: nearly half of all products are masked and so
never computed, scores exist for one block at a time, and the backward pass computes them again (arXiv:2205.14135).

On a CPU more than half of the time went into passes over scores, for which memory is too slow. So only a block's last
keys, those from its first query on, are masked, and in place; and scores are held transposed, keys by queries: matrix
products are fastest so, and what remains to be transposed is narrow.

Shapes: B batch, T query time, S key time, H query heads, K key/value heads, G = H/K queries per key head, C head
channels, X = G T queries that share a key head, by time, or those of a block.
"""

from typing import Any

import jax
import jax.numpy as jnp

SHORTEST_BLOCK = 128  # in shorter blocks matrix products are inefficient
MOST_BLOCKS = 8  # each is compiled on its own; more than eight would save at most another sixteenth of the work


def blockwise_attention(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    """`causal_attention` of a whole sequence, S = T; returns (B, T, H, C)."""
    B, T, H, C = q_BTHC.shape
    K = k_BSKC.shape[2]
    q_BKXC = q_BTHC.reshape(B, T, K, H // K, C).transpose(0, 2, 1, 3, 4).reshape(B, K, T * H // K, C)
    y_BKXC = _attention(q_BKXC, k_BSKC.transpose(0, 2, 1, 3), v_BSKC.transpose(0, 2, 1, 3))
    return y_BKXC.reshape(B, K, T, H // K, C).transpose(0, 2, 1, 3, 4).reshape(B, T, H, C)


@jax.custom_vjp
def _attention(q_BKXC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array) -> jax.Array:
    return _forward(q_BKXC, k_BKSC, v_BKSC)[0]


def _forward(q_BKXC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array) -> tuple[jax.Array, Any]:
    """The result, and for the backward pass q, k, v, the result and the logsumexp of each query's scores."""
    C, dtype = q_BKXC.shape[-1], q_BKXC.dtype
    groups = q_BKXC.shape[2] // k_BKSC.shape[2]
    blocks_y, blocks_logsum = [], []
    for first, last in _blocks(k_BKSC.shape[2]):
        q, k, v = q_BKXC[:, :, groups * first : groups * last], k_BKSC[:, :, :last], v_BKSC[:, :, :last]
        scores_BKSX = _scores(q, k, first)
        largest_BK1X = jnp.max(scores_BKSX, axis=2, keepdims=True)
        weights_BKSX = jnp.exp(C**-0.5 * (scores_BKSX - largest_BK1X))
        sum_BK1X = jnp.sum(weights_BKSX, axis=2, keepdims=True)
        y_BKCX = _product("bksc,bksx->bkcx", v, weights_BKSX.astype(dtype)) / sum_BK1X
        blocks_y.append(y_BKCX.astype(dtype).mT)
        blocks_logsum.append(C**-0.5 * largest_BK1X + jnp.log(sum_BK1X))
    y_BKXC = jnp.concatenate(blocks_y, axis=2)
    return y_BKXC, (q_BKXC, k_BKSC, v_BKSC, y_BKXC, jnp.concatenate(blocks_logsum, axis=3))


def _backward(saved: Any, dy_BKXC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v.

    With weights W, scores S and y = W v: dv = W^T dy, dW = dy v^T, dS = W (dW - sum(y dy)).
    """
    q_BKXC, k_BKSC, v_BKSC, y_BKXC, logsum_BK1X = saved
    C, dtype, wide = q_BKXC.shape[-1], q_BKXC.dtype, logsum_BK1X.dtype
    groups = q_BKXC.shape[2] // k_BKSC.shape[2]
    y_dy_BK1X = jnp.sum(y_BKXC.astype(wide) * dy_BKXC.astype(wide), axis=-1)[:, :, None]
    dk_BKSC, dv_BKSC = jnp.zeros(k_BKSC.shape, wide), jnp.zeros(v_BKSC.shape, wide)
    blocks_dq = []
    for first, last in _blocks(k_BKSC.shape[2]):
        queries = slice(groups * first, groups * last)
        q, dy, k, v = q_BKXC[:, :, queries], dy_BKXC[:, :, queries], k_BKSC[:, :, :last], v_BKSC[:, :, :last]
        weights_BKSX = jnp.exp(C**-0.5 * _scores(q, k, first) - logsum_BK1X[..., queries])
        dweights_BKSX = _product("bksc,bkxc->bksx", v, dy)
        dscores_BKSX = (C**-0.5 * weights_BKSX * (dweights_BKSX - y_dy_BK1X[..., queries])).astype(dtype)
        dv = _product("bksx,bkxc->bksc", weights_BKSX.astype(dtype), dy)
        dk = _product("bksx,bkxc->bksc", dscores_BKSX, q)
        dk_BKSC, dv_BKSC = dk_BKSC.at[:, :, :last].add(dk), dv_BKSC.at[:, :, :last].add(dv)
        blocks_dq.append(jnp.einsum("bksc,bksx->bkcx", k, dscores_BKSX).mT)
    return jnp.concatenate(blocks_dq, axis=2), dk_BKSC.astype(dtype), dv_BKSC.astype(dtype)


_attention.defvjp(_forward, _backward)


def _scores(q_BKXC: jax.Array, k_BKSC: jax.Array, first: int) -> jax.Array:
    """k q^T of the keys 0 ... last and the queries first ... last; minus infinity where a key is after its query."""
    scores_BKSX = _product("bksc,bkxc->bksx", k_BKSC, q_BKXC)
    X, length = scores_BKSX.shape[3], scores_BKSX.shape[2] - first
    sees_SX = jnp.arange(length)[:, None] <= jnp.arange(X) // (X // length)
    return scores_BKSX.at[:, :, first:].set(jnp.where(sees_SX, scores_BKSX[:, :, first:], -jnp.inf))


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum, summed and returned in float32 or wider."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _blocks(length: int) -> list[tuple[int, int]]:
    """First and last + 1 of each block of queries."""
    size = max(SHORTEST_BLOCK, -(-length // MOST_BLOCKS))
    return [(first, min(first + size, length)) for first in range(0, length, size)]
