"""Linear, BatchNorm, ReLU, Dropout, Linear: the model whose train and eval modes differ.

Shapes: B batch, F features, D hidden units, K classes.
"""

import torch
from torch import nn

from recipe.config import MLPConfig
from torch_ref.models.layers import Linear


class BatchNorm(nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, computed in float32 or wider."""

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """x (B, D) -> (B, D) in the type of x; in train mode updates `running_mean` and `running_var`."""
        return super().forward(x_BD.to(self.weight.dtype)).to(x_BD.dtype)


class Dropout(nn.Dropout):
    """torch.nn.Dropout, or in train mode a mask (B, D) bool, true where kept, that the caller drew."""

    def forward(self, x_BD: torch.Tensor, mask_BD: torch.Tensor | None = None) -> torch.Tensor:
        if mask_BD is None or not self.training:
            return super().forward(x_BD)
        return torch.where(mask_BD, x_BD / (1 - self.p), 0)


class MLP(nn.Module):
    """fc2(dropout(relu(norm(fc1(x))))).

    fc1 has no bias: the normalization subtracts it again, its gradient is rounding noise, and Adam, which divides by
    the gradient's size, would turn that noise into updates.
    """

    def __init__(self, config: MLPConfig, *, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__()
        assert config.features is not None
        assert config.classes is not None
        self.fc1 = Linear(config.features, config.hidden, bias=False, dtype=param_dtype)
        self.norm = BatchNorm(config.hidden, config.batch_norm_eps, config.batch_norm_momentum, dtype=param_dtype)
        self.dropout = Dropout(config.dropout)
        self.fc2 = Linear(config.hidden, config.classes, bias=True, dtype=param_dtype)
        self.dtype = dtype

    def forward(self, inputs_BF: torch.Tensor, dropout_mask_BD: torch.Tensor | None = None) -> torch.Tensor:
        """inputs (B, F) -> logits (B, K).

        In train mode units are dropped by `dropout_mask` (B, D) bool, true where kept, or else by torch's generator.
        """
        x_BD = torch.relu(self.norm(self.fc1(inputs_BF.to(self.dtype))))
        return self.fc2(self.dropout(x_BD, dropout_mask_BD))
