"""Causal attention with grouped key/value heads.

Shapes: B batch, T query time, S key time, H query heads, K key/value heads, G = H/K queries per key head, C head
channels.
"""

import jax
import jax.numpy as jnp


def causal_attention(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array, start: int = 0) -> jax.Array:
    """softmax(q k^T / sqrt(C)) v, where query t sees the keys 0 ... start + t; returns (B, T, H, C).

    Scores and softmax are float32 or wider (arXiv:1706.03762, equation 1; grouping: arXiv:2305.13245).
    """
    B, T, H, C = q_BTHC.shape
    S, K = k_BSKC.shape[1:3]
    wide = jnp.promote_types(q_BTHC.dtype, jnp.float32)
    q_BTKGC = q_BTHC.reshape(B, T, K, H // K, C)
    scores_BKGTS = jnp.einsum("btkgc,bskc->bkgts", q_BTKGC, k_BSKC, preferred_element_type=wide) * C**-0.5
    at_T = start + jnp.arange(T)
    sees_TS = jnp.arange(S)[None, :] <= at_T[:, None]
    weights_BKGTS = jax.nn.softmax(jnp.where(sees_TS, scores_BKGTS, -jnp.inf), axis=-1).astype(q_BTHC.dtype)
    return jnp.einsum("bkgts,bskc->btkgc", weights_BKGTS, v_BSKC).reshape(B, T, H, C)
