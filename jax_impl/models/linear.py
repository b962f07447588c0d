"""The linear classifier: one layer from features to logits.

Shapes: B batch, F features, K logits (the classes, or 1 with a sigmoid head).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jax_impl.models.layers import Linear
from twinstep.config import LinearConfig


class LinearClassifier(nnx.Module):
    """logits = x W^T + b."""

    def __init__(self, config: LinearConfig, *, dtype: jnp.dtype, param_dtype: jnp.dtype):
        assert config.features is not None
        self.linear = Linear(config.features, config.logits, bias=True, param_dtype=param_dtype)
        self.dtype = dtype

    def __call__(self, inputs_BF: jax.Array) -> jax.Array:
        """inputs (B, F) -> logits (B, K)."""
        return self.linear(inputs_BF.astype(self.dtype))
