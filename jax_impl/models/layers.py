"""Layers that hold parameters, under torch's names and orientation.

Shapes: B batch, T time, D in channels, O out channels, V vocabulary; `...` any leading axes.

Each layer passes its output through `checkpoint_name` with its own path ("h.0.attn.c_q"), torch's module name.
The tag costs nothing and lets the parity engine find every activation in the jaxpr.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name


class Linear(nnx.Module):
    """y = x W^T + b with W of shape (O, D), as torch.nn.Linear; the product is in the type of x."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, param_dtype: jnp.dtype):
        self.weight = nnx.Param(jnp.zeros((out_features, in_features), param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype)) if bias else None
        self.path = ""

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., D) -> (..., O)."""
        # Leading axes made one: the gradients' products then take their operands as they lie, without copies.
        y = (x.reshape(-1, x.shape[-1]) @ self.weight[...].astype(x.dtype).T).reshape(*x.shape[:-1], -1)
        if self.bias is not None:
            # Wide, as torch adds it: the gradient of a bfloat16 bias would be summed over the batch in bfloat16.
            wide = jnp.promote_types(x.dtype, jnp.float32)
            y = (y.astype(wide) + self.bias[...].astype(x.dtype).astype(wide)).astype(x.dtype)
        return checkpoint_name(y, self.path)


class Embedding(nnx.Module):
    """Rows of a (V, D) table, as torch.nn.Embedding."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: jnp.dtype, param_dtype: jnp.dtype):
        self.weight = nnx.Param(jnp.zeros((num_embeddings, embedding_dim), param_dtype))
        self.dtype = dtype
        self.path = ""

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """tokens (B, T) int -> (B, T, D) in the compute type."""
        return checkpoint_name(self.weight[...][tokens_BT].astype(self.dtype), self.path)
