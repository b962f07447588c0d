"""Keys and values of the tokens seen so far, and attention over them.

Shapes: B batch, T query time, S cached time, H query heads, K key/value heads, M = B K of them in the batch, G = H/K
queries per key head, C head channels, X = G T queries of a key head.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from twinstep.config import GPTConfig


@jax.tree_util.register_dataclass
@dataclass
class BlockCache:
    """One block's keys (M, C, S) and values (M, S, C); while a function is traced they change in place.

    torch's are (B, S, K, C), which XLA would copy, transposed, for every token.
    """

    keys: jax.Array
    values: jax.Array


class Cache(NamedTuple):
    """The caches of all blocks; `length` of their S tokens are set."""

    blocks: tuple[BlockCache, ...]
    length: jax.Array


def make_cache(config: GPTConfig, batch: int, size: int, dtype: jnp.dtype) -> Cache:
    """An empty cache for `batch` sequences of at most `size` tokens."""
    K, C = config.key_value_heads, config.head_dim
    blocks = [
        BlockCache(jnp.zeros((batch * K, C, size), dtype), jnp.zeros((batch * K, size, C), dtype))
        for _ in range(config.depth)
    ]
    return Cache(tuple(blocks), jnp.int32(0))


def cached_attention(
    q_BTHC: jax.Array, k_BTKC: jax.Array, v_BTKC: jax.Array, cache: BlockCache, start: jax.Array | int
) -> jax.Array:
    """`causal_attention` of T tokens after the `start` in the cache, into which they are written; (B, T, H, C).

    Keys past start + T are masked: XLA needs one shape for every length, where torch slices the cache to its length.
    """
    B, T, H, C = q_BTHC.shape
    M, S, K = *cache.values.shape[:2], k_BTKC.shape[2]
    k_MCT = k_BTKC.transpose(0, 2, 3, 1).reshape(M, C, T)
    v_MTC = v_BTKC.transpose(0, 2, 1, 3).reshape(M, T, C)
    cache.keys = jax.lax.dynamic_update_slice_in_dim(cache.keys, k_MCT, start, axis=2)
    cache.values = jax.lax.dynamic_update_slice_in_dim(cache.values, v_MTC, start, axis=1)

    q_MXC = q_BTHC.reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4).reshape(M, -1, C)
    wide = jnp.promote_types(q_BTHC.dtype, jnp.float32)
    scores_MXS = jnp.einsum("mxc,mcs->mxs", q_MXC, cache.keys, preferred_element_type=wide) * C**-0.5
    sees_XS = jnp.arange(S)[None, :] <= start + jnp.tile(jnp.arange(T), H // K)[:, None]
    weights_MXS = jax.nn.softmax(jnp.where(sees_XS, scores_MXS, -jnp.inf), axis=-1).astype(q_BTHC.dtype)
    y_MXC = jnp.einsum("mxs,msc->mxc", weights_MXS, cache.values)
    return y_MXC.reshape(B, K, H // K, T, C).transpose(0, 3, 1, 2, 4).reshape(B, T, H, C)
