"""The linear classifier: one layer from features to logits.

Shapes: B batch, F features, V logits (the classes, or 1 with a sigmoid head).
"""

import torch
from torch import nn

from torch_ref.models.layers import Linear
from twinstep.config import LinearConfig


class LinearClassifier(nn.Module):
    """logits = x W^T + b."""

    def __init__(self, config: LinearConfig, *, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__()
        assert config.features is not None
        self.linear = Linear(config.features, config.logits, bias=True, dtype=param_dtype)
        self.dtype = dtype

    def forward(self, inputs_BF: torch.Tensor) -> torch.Tensor:
        """inputs (B, F) -> logits (B, V)."""
        return self.linear(inputs_BF.to(self.dtype))
