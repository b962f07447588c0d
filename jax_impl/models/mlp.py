"""Linear, BatchNorm, ReLU, Dropout, Linear: the model whose train and eval modes differ.

Shapes: B batch, F features, D hidden units, K classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jax_impl.models.layers import Linear
from twinstep.config import MLPConfig


class BatchNorm(nnx.BatchNorm):
    """flax.nnx.BatchNorm with torch's running variance.

    Both normalise by the biased variance of the batch. Into the running variance torch puts the unbiased one,
    n/(n-1) as large (torch.nn.BatchNorm1d), Flax the biased one; only evaluation shows the difference.
    """

    def __init__(self, config: MLPConfig, *, dtype: jnp.dtype, param_dtype: jnp.dtype, axis_name: Any):
        super().__init__(
            config.hidden,
            momentum=1 - config.batch_norm_momentum,  # torch's weighs the new value, Flax's the old
            epsilon=config.batch_norm_eps,
            dtype=jnp.promote_types(dtype, jnp.float32),
            param_dtype=param_dtype,
            use_fast_variance=False,  # E[x^2] - E[x]^2 cancels
            axis_name=axis_name,  # under pmap: statistics of the batch over all devices
            rngs=nnx.Rngs(0),
        )
        self.path = ""

    def __call__(self, x_BD: jax.Array, use_running_average: bool | None = None, *, mask=None) -> jax.Array:
        """x (B, D) -> (B, D) in the type of x; in train mode updates `mean` and `var`."""
        old_var = self.var[...]
        y_BD = super().__call__(x_BD, use_running_average, mask=mask)
        if not self.use_running_average:
            n = x_BD.shape[0] * (1 if self.axis_name is None else jax.lax.axis_size(self.axis_name))
            kept = self.momentum * old_var
            self.var[...] = kept + (self.var[...] - kept) * (n / (n - 1))
        return checkpoint_name(y_BD.astype(x_BD.dtype), self.path)


class MLP(nnx.Module):
    """fc2(dropout(relu(norm(fc1(x))))).

    fc1 has no bias: the normalization subtracts it again, its gradient is rounding noise, and Adam, which divides by
    the gradient's size, would turn that noise into updates.
    """

    def __init__(self, config: MLPConfig, *, dtype: jnp.dtype, param_dtype: jnp.dtype, axis_name: Any = None):
        assert config.features is not None
        assert config.classes is not None
        self.fc1 = Linear(config.features, config.hidden, bias=False, param_dtype=param_dtype)
        self.norm = BatchNorm(config, dtype=dtype, param_dtype=param_dtype, axis_name=axis_name)
        self.dropout = nnx.Dropout(config.dropout)
        self.fc2 = Linear(config.hidden, config.classes, bias=True, param_dtype=param_dtype)
        self.dtype = dtype

    def __call__(
        self, inputs_BF: jax.Array, key: jax.Array | None = None, dropout_mask_BD: jax.Array | None = None
    ) -> jax.Array:
        """inputs (B, F) -> logits (B, K).

        In train mode units are dropped by `dropout_mask` (B, D) bool, true where kept, or else by `key`.
        """
        x_BD = jax.nn.relu(self.norm(self.fc1(inputs_BF.astype(self.dtype))))
        if dropout_mask_BD is None or self.dropout.deterministic:
            x_BD = self.dropout(x_BD, rngs=key)
        else:
            x_BD = jnp.where(dropout_mask_BD, x_BD / (1 - self.dropout.rate), 0)
        return self.fc2(checkpoint_name(x_BD, "dropout"))
