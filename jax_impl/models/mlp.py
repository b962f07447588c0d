"""Linear, BatchNorm, ReLU, Dropout, Linear: the model whose train and eval modes differ.

Shapes: B batch, F features, D hidden units, V classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jax_impl.models.batch_norm import BatchNorm
from jax_impl.models.layers import Linear, Module
from twinstep.config import MLPConfig


class Dropout(Module, nnx.Dropout):
    """flax.nnx.Dropout, or in train mode a mask (B, D) bool, true where kept, that the caller drew."""

    def forward(self, x_BD: jax.Array, mask_BD: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """x (B, D) -> (B, D); what is kept grows by 1 / (1 - rate), so that the mean stays. Eval mode: x itself."""
        if mask_BD is None or self.deterministic:
            return nnx.Dropout.__call__(self, x_BD, rngs=key)
        # In float32, as torch divides: in bfloat16 the divisor would be rounded too, 0.8 to 0.80078.
        wide_BD = x_BD.astype(jnp.promote_types(x_BD.dtype, jnp.float32))
        return jnp.where(mask_BD, (wide_BD / (1 - self.rate)).astype(x_BD.dtype), 0)


class MLPClassifier(Module):
    """fc2(dropout(relu(norm(fc1(x))))).

    fc1 has no bias: the normalization subtracts it again, its gradient is rounding noise, and Adam, which divides by
    the gradient's size, would turn that noise into updates.
    """

    def __init__(self, config: MLPConfig, *, dtype: jnp.dtype, param_dtype: jnp.dtype):
        assert config.features is not None
        assert config.classes is not None
        eps, momentum = config.batch_norm_eps, config.batch_norm_momentum
        self.fc1 = Linear(config.features, config.hidden, bias=False, param_dtype=param_dtype)
        self.norm = BatchNorm(config.hidden, eps, momentum, param_dtype=param_dtype)
        self.dropout = Dropout(config.dropout)
        self.fc2 = Linear(config.hidden, config.classes, bias=True, param_dtype=param_dtype)
        self.dtype = dtype

    def forward(
        self, inputs_BF: jax.Array, dropout_mask_BD: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """inputs (B, F) -> logits (B, V).

        In train mode units are dropped by `dropout_mask` (B, D) bool, true where kept, or else by `key`.
        """
        x_BD = jax.nn.relu(self.norm(self.fc1(inputs_BF.astype(self.dtype))))
        return self.fc2(self.dropout(x_BD, dropout_mask_BD, key))
