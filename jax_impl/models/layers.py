"""Modules as torch has them: `forward` says what is computed, names and orientation of parameters are torch's.

Shapes: B batch, T time, F in features, O out features, D model, V vocabulary; `...` any leading axes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name


class Module(nnx.Module):
    """A module whose call runs `forward` and tags what it returns with the module's path, "h.0.attn.c_q".

    A tag costs nothing. By it the parity engine finds each activation in the jaxpr, as hooks find it in torch.
    """

    path = ""  # torch's name of the module, written by `make_model`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` returns for the same arguments."""
        return checkpoint_name(self.forward(*args, **kwargs), self.path)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes, one array."""
        raise NotImplementedError


class Identity(Module):
    """Returns its input, as torch.nn.Identity: a tag for a value that no other module returns."""

    def forward(self, x: jax.Array) -> jax.Array:
        """x of any shape -> x."""
        return x


class Linear(Module):
    """y = x W^T + b with W of shape (O, F), as torch.nn.Linear; the product is in the dtype of x."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, param_dtype: jnp.dtype):
        self.out_features = out_features
        self.weight = nnx.Param(jnp.zeros((out_features, in_features), param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype)) if bias else None

    def forward(self, x: jax.Array) -> jax.Array:
        """x (..., F) -> (..., O)."""
        # One leading axis: the gradients' products then read their operands as they lie in memory, without copies.
        y = (x.reshape(-1, x.shape[-1]) @ self.weight[...].astype(x.dtype).T).reshape(*x.shape[:-1], -1)
        if self.bias is not None:
            # In float32, as torch adds it: the gradient of a bfloat16 bias would be summed over the batch in bfloat16.
            wide = jnp.promote_types(x.dtype, jnp.float32)
            y = (y.astype(wide) + self.bias[...].astype(x.dtype).astype(wide)).astype(x.dtype)
        return y


class Embedding(Module):
    """Rows of a (V, D) table, in the compute dtype."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: jnp.dtype, param_dtype: jnp.dtype):
        self.weight = nnx.Param(jnp.zeros((num_embeddings, embedding_dim), param_dtype))
        self.dtype = dtype

    def forward(self, tokens_BT: jax.Array) -> jax.Array:
        """tokens (B, T) int -> (B, T, D) in the compute dtype."""
        return self.weight[...][tokens_BT].astype(self.dtype)
