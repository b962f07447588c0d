"""The linear classifier: one layer from features to logits.

Shapes: B batch, F features, V logits (the classes, or 1 with a sigmoid head).
"""

import jax
import jax.numpy as jnp

from jax_impl.models.layers import Linear, Module
from twinstep.config import LinearConfig


class LinearClassifier(Module):
    """logits = x W^T + b."""

    def __init__(self, config: LinearConfig, *, dtype: jnp.dtype, param_dtype: jnp.dtype):
        assert config.features is not None
        self.linear = Linear(config.features, config.logits, bias=True, param_dtype=param_dtype)
        self.dtype = dtype

    def forward(self, inputs_BF: jax.Array) -> jax.Array:
        """inputs (B, F) -> logits (B, V)."""
        return self.linear(inputs_BF.astype(self.dtype))
