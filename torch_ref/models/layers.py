"""torch.nn.Linear and torch.nn.Embedding with parameters in one dtype and computation in another.

Shapes: B batch, T time, F in features, O out features, D model, V vocabulary; `...` any leading axes.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Linear(nn.Linear):
    """y = x W^T + b with W of shape (O, F); the product is in the dtype of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., F) -> (..., O)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Embedding):
    """Rows of a (V, D) table, in the compute dtype."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__(num_embeddings, embedding_dim, dtype=param_dtype)
        self.dtype = dtype

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) int -> (B, T, D) in the compute dtype."""
        return super().forward(tokens_BT).to(self.dtype)
