"""Causal attention by cuDNN's flash kernel, for NVIDIA GPUs: scores never leave the chip's fast memory.

Shapes: B batch, T query time, S = T key time, H query heads, K key/value heads, C head channels.
"""

import jax
import jax.numpy as jnp

from jax_impl.models.blockwise import blockwise_attention

TYPES = (jnp.bfloat16, jnp.float16)
LARGEST_HEAD = 128  # channels; on all cards from the A100 on


def cudnn_attention(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    """`causal_attention`, by the kernel where it applies: two-byte types, C a multiple of 8 up to 128.

    Elsewhere `blockwise_attention`. The conditions are those of jax/_src/cudnn/fused_attention_stablehlo.py.
    """
    C = q_BTHC.shape[-1]
    if q_BTHC.dtype not in TYPES or C % 8 or C > LARGEST_HEAD:
        return blockwise_attention(q_BTHC, k_BSKC, v_BSKC)
    return jax.nn.dot_product_attention(q_BTHC, k_BSKC, v_BSKC, is_causal=True, implementation="cudnn")
