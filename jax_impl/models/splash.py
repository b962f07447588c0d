"""Causal attention by the Pallas kernel that ships with JAX, for TPUs: scores never leave the chip's fast memory.

The kernel cannot be partitioned by XLA, so it runs where each device sees its own examples: inside pmap or shard_map.

Shapes: B batch, T query time, S = T key time, H query heads, K key/value heads, C head channels.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from jax_impl.models.blockwise import blockwise_attention

LANES = 128  # the kernel's tiles are as wide as a TPU's vector registers
LARGEST_BLOCK = 512  # queries and keys per tile


def splash_attention(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    """`causal_attention`, by the kernel where it applies: T and C multiples of 128; else `blockwise_attention`."""
    _, T, H, C = q_BTHC.shape
    if T % LANES or C % LANES:
        return blockwise_attention(q_BTHC, k_BSKC, v_BSKC)
    size = next(size for size in range(min(LARGEST_BLOCK, T), 0, -LANES) if T % size == 0)
    blocks = kernels.BlockSizes(
        block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
    )
    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * H)
    kernel = kernels.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1)
    scaled_BTHC = (q_BTHC.astype(jnp.float32) * C**-0.5).astype(q_BTHC.dtype)  # the kernel does not scale
    y_BHTC = jax.vmap(kernel)(*(x.transpose(0, 2, 1, 3) for x in (scaled_BTHC, k_BSKC, v_BSKC)))
    return y_BHTC.transpose(0, 2, 1, 3)
