"""Batch normalization with the statistics of the whole batch, on however many devices.

Shapes: B batch, F features.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jax_impl.models.layers import Module


class BatchNorm(Module, nnx.BatchNorm):
    """flax.nnx.BatchNorm, computed in float32 or wider, with torch's running variance.

    Both normalize by the biased variance of the batch. Into the running variance torch puts the unbiased one,
    n/(n-1) as large (torch.nn.BatchNorm1d), Flax the biased one; only evaluation shows the difference.
    `axis_name`, the mapped axes over which the statistics are taken, is written by `make_model`.
    """

    def __init__(self, num_features: int, eps: float, momentum: float, *, param_dtype: jnp.dtype):
        super().__init__(
            num_features,
            momentum=1 - momentum,  # torch's weighs the new value, Flax's the old
            epsilon=eps,
            dtype=param_dtype,
            param_dtype=param_dtype,
            use_fast_variance=False,  # E[x^2] - E[x]^2 cancels
            rngs=nnx.Rngs(0),
        )

    def forward(self, x_BF: jax.Array) -> jax.Array:
        """x (B, F) -> (B, F) in the dtype of x; in train mode updates `mean` and `var`."""
        old_var = self.var[...]
        y_BF = nnx.BatchNorm.__call__(self, x_BF)
        if not self.use_running_average:
            n = x_BF.shape[0] * (1 if self.axis_name is None else jax.lax.axis_size(self.axis_name))
            kept = self.momentum * old_var
            self.var[...] = kept + (self.var[...] - kept) * (n / (n - 1))
        return y_BF.astype(x_BF.dtype)
