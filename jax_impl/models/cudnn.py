"""Causal attention by cuDNN's flash kernel, for NVIDIA GPUs: scores never leave the chip's fast memory.

Shapes: B batch, T query time, S = T key time, H query heads, K key/value heads, C head channels.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp

from jax_impl.models.blockwise import blockwise_attention

TYPES = (jnp.bfloat16, jnp.float16)
LARGEST_HEAD = 128  # channels, on every card that has the kernel

kernel = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")


def cudnn_attention(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    """`causal_attention`, by the kernel where it applies: bfloat16 or float16, C a multiple of 8 up to 128, T even.

    Elsewhere, and on cards or with a cuDNN too old for it, `blockwise_attention`.
    """
    _, T, _, C = q_BTHC.shape
    if q_BTHC.dtype not in TYPES or C % 8 or C > LARGEST_HEAD or T % 2 or not available():
        return blockwise_attention(q_BTHC, k_BSKC, v_BSKC)
    return kernel(q_BTHC, k_BSKC, v_BSKC)


@cache
def available() -> bool:
    """Whether the kernel compiles here: JAX checks the card and cuDNN only then."""
    x_BTHC = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    try:
        jax.jit(kernel).lower(x_BTHC, x_BTHC, x_BTHC).compile()
    except Exception:  # RuntimeError, NotImplementedError, XlaRuntimeError: as the release has it
        return False
    return True
