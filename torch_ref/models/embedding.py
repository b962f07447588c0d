"""Token embedding, then one linear layer per position: the smallest model with two kinds of parameters.

Shapes: B batch, T time, D model, V vocabulary.
"""

import torch
from torch import nn

from torch_ref.models.layers import Embedding, Linear
from twinstep.config import EmbeddingConfig


class EmbeddingModel(nn.Module):
    """logits[b, t] = W embedding[tokens[b, t]]: a bigram table of rank D."""

    def __init__(self, config: EmbeddingConfig, *, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__()
        assert config.vocab_size is not None
        self.embedding = Embedding(config.vocab_size, config.d_model, dtype=dtype, param_dtype=param_dtype)
        self.linear = Linear(config.d_model, config.vocab_size, bias=False, dtype=param_dtype)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) int -> logits (B, T, V)."""
        return self.linear(self.embedding(tokens_BT))
