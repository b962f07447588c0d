"""Causal attention with grouped key/value heads.

Shapes: B batch, T query time, S key time, H query heads, K key/value heads, G = H/K queries per key, C channels;
N = G T queries of a block, all of those that share a key head; M = B K key heads of a cache.
"""

import jax
import jax.numpy as jnp

# A sequence is cut into blocks of queries, and each meets the keys up to its own end: nearly half of all products lie
# behind the mask and are never made, and scores exist for one block at a time.
SHORTEST_BLOCK = 128  # below it matrix products grow inefficient
MOST_BLOCKS = 8  # each is compiled on its own; what is left to skip beyond eight is a sixteenth of the work


def causal_attention(q_BTHC: jax.Array, k_BTKC: jax.Array, v_BTKC: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(C)) v, where query t sees the keys 0 ... t; returns (B, T, H, C).

    Scores and softmax are float32 or wider (arXiv:1706.03762, equation 1; grouping: arXiv:2305.13245).
    """
    k_BKTC, v_BKTC = k_BTKC.transpose(0, 2, 1, 3), v_BTKC.transpose(0, 2, 1, 3)
    return _ungrouped(_blockwise_attention(_grouped(q_BTHC, k_BTKC.shape[2]), k_BKTC, v_BKTC))


def cached_attention(q_BTHC: jax.Array, k_MCS: jax.Array, v_MSC: jax.Array, start) -> jax.Array:
    """The same for T queries that see the keys 0 ... start + t of a cache: few queries, a mask known at run time."""
    B, T, H, C = q_BTHC.shape
    M, S = v_MSC.shape[:2]
    q_BKGTC = _grouped(q_BTHC, M // B)
    q_MNC = q_BKGTC.reshape(M, -1, C)
    wide = jnp.promote_types(q_BTHC.dtype, jnp.float32)
    scores_MNS = jnp.einsum("mnc,mcs->mns", q_MNC, k_MCS, preferred_element_type=wide) * C**-0.5
    sees_NS = jnp.arange(S)[None, :] <= start + _positions(B * H // M, 0, T)[:, None]
    weights_MNS = jax.nn.softmax(jnp.where(sees_NS, scores_MNS, -jnp.inf), axis=-1).astype(q_BTHC.dtype)
    return _ungrouped(jnp.einsum("mns,msc->mnc", weights_MNS, v_MSC).reshape(q_BKGTC.shape))


def _grouped(q_BTHC: jax.Array, key_heads: int) -> jax.Array:
    """Queries by the key head that they share, (B, K, G, T, C)."""
    B, T, H, C = q_BTHC.shape
    return q_BTHC.reshape(B, T, key_heads, H // key_heads, C).transpose(0, 2, 3, 1, 4)


def _ungrouped(y_BKGTC: jax.Array) -> jax.Array:
    """The inverse of `_grouped`, (B, T, H, C)."""
    B, K, G, T, C = y_BKGTC.shape
    return y_BKGTC.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, C)


@jax.custom_vjp
def _blockwise_attention(q_BKGTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array) -> jax.Array:
    """Attention over a whole sequence; its backward pass computes the weights again (arXiv:2205.14135)."""
    return _blockwise_forward(q_BKGTC, k_BKSC, v_BKSC)[0]


def _blockwise_forward(q_BKGTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array):
    """The result, and for the backward pass q, k, v, the result and each query's log of its sum of exponentials."""
    B, K, G, T, C = q_BKGTC.shape
    dtype, wide = q_BKGTC.dtype, jnp.promote_types(q_BKGTC.dtype, jnp.float32)
    blocks_y, blocks_logsum = [], []
    for first, last in _blocks(T):
        q_BKNC = _cut(q_BKGTC, first, last)
        scores_BKNS = jnp.einsum("bknc,bksc->bkns", q_BKNC, k_BKSC[:, :, :last], preferred_element_type=wide)
        sees_NS = jnp.arange(last)[None, :] <= _positions(G, first, last)[:, None]
        scores_BKNS = jnp.where(sees_NS, scores_BKNS, -jnp.inf)
        largest_BKN1 = jnp.max(scores_BKNS, axis=-1, keepdims=True)
        weights_BKNS = jnp.exp(C**-0.5 * (scores_BKNS - largest_BKN1))
        sum_BKN1 = jnp.sum(weights_BKNS, axis=-1, keepdims=True)
        y_BKNC = jnp.einsum(
            "bkns,bksc->bknc", weights_BKNS.astype(dtype), v_BKSC[:, :, :last], preferred_element_type=wide
        )
        blocks_y.append((y_BKNC / sum_BKN1).astype(dtype).reshape(B, K, G, -1, C))
        blocks_logsum.append((C**-0.5 * largest_BKN1 + jnp.log(sum_BKN1)).reshape(B, K, G, -1))
    y_BKGTC = jnp.concatenate(blocks_y, axis=3)
    return y_BKGTC, (q_BKGTC, k_BKSC, v_BKSC, y_BKGTC, jnp.concatenate(blocks_logsum, axis=3))


def _blockwise_backward(saved, dy_BKGTC: jax.Array):
    """Gradients of q, k and v.

    With weights W, scores S and y = W v: dv = W^T dy, dW = dy v^T, dS = W (dW - sum(y dy)). Weights and scores stand
    transposed, keys by queries: then only the narrow dq is ever turned.
    """
    q_BKGTC, k_BKSC, v_BKSC, y_BKGTC, logsum_BKGT = saved
    B, K, G, T, C = q_BKGTC.shape
    dtype, wide = q_BKGTC.dtype, jnp.promote_types(q_BKGTC.dtype, jnp.float32)
    y_dy_BKGT = jnp.sum(y_BKGTC.astype(wide) * dy_BKGTC.astype(wide), axis=-1)
    dk_BKSC, dv_BKSC = jnp.zeros(k_BKSC.shape, wide), jnp.zeros(v_BKSC.shape, wide)
    blocks_dq = []
    for first, last in _blocks(T):
        q_BKNC, dy_BKNC = _cut(q_BKGTC, first, last), _cut(dy_BKGTC, first, last)
        logsum_BK1N, y_dy_BK1N = (_cut(x, first, last)[:, :, None] for x in (logsum_BKGT, y_dy_BKGT))
        k, v = k_BKSC[:, :, :last], v_BKSC[:, :, :last]
        scores_BKSN = jnp.einsum("bksc,bknc->bksn", k, q_BKNC, preferred_element_type=wide)
        sees_SN = jnp.arange(last)[:, None] <= _positions(G, first, last)
        weights_BKSN = jnp.where(sees_SN, jnp.exp(C**-0.5 * scores_BKSN - logsum_BK1N), 0)
        dweights_BKSN = jnp.einsum("bksc,bknc->bksn", v, dy_BKNC, preferred_element_type=wide)
        dscores_BKSN = (C**-0.5 * weights_BKSN * (dweights_BKSN - y_dy_BK1N)).astype(dtype)
        dv = jnp.einsum("bksn,bknc->bksc", weights_BKSN.astype(dtype), dy_BKNC, preferred_element_type=wide)
        dk = jnp.einsum("bksn,bknc->bksc", dscores_BKSN, q_BKNC, preferred_element_type=wide)
        dq_BKCN = jnp.einsum("bksc,bksn->bkcn", k, dscores_BKSN)
        dk_BKSC, dv_BKSC = dk_BKSC.at[:, :, :last].add(dk), dv_BKSC.at[:, :, :last].add(dv)
        blocks_dq.append(dq_BKCN.mT.reshape(B, K, G, -1, C))
    return jnp.concatenate(blocks_dq, axis=3), dk_BKSC.astype(dtype), dv_BKSC.astype(dtype)


_blockwise_attention.defvjp(_blockwise_forward, _blockwise_backward)


def _blocks(length: int) -> list[tuple[int, int]]:
    """First and last + 1 of each block of queries."""
    size = max(SHORTEST_BLOCK, -(-length // MOST_BLOCKS))
    return [(first, min(first + size, length)) for first in range(0, length, size)]


def _cut(x_BKGT: jax.Array, first: int, last: int) -> jax.Array:
    """The block of (B, K, G, T, ...) as (B, K, N, ...)."""
    B, K, G = x_BKGT.shape[:3]
    return x_BKGT[:, :, :, first:last].reshape(B, K, G * (last - first), *x_BKGT.shape[4:])


def _positions(groups: int, first: int, last: int) -> jax.Array:
    """The time (N,) of each query of a block."""
    return jnp.tile(jnp.arange(first, last), groups)
