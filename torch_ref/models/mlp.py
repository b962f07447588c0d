"""Linear, BatchNorm, ReLU, Dropout, Linear: the model whose train and eval modes differ.

Shapes: B batch, F features, D hidden units, V classes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from torch_ref.models.batch_norm import BatchNorm
from torch_ref.models.layers import Linear
from twinstep.config import MLPConfig


class Dropout(nn.Dropout):
    """torch.nn.Dropout, or in train mode a mask (B, D) bool, true where kept, that the caller drew."""

    def forward(self, x_BD: torch.Tensor, mask_BD: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, D) -> (B, D); what is kept grows by 1 / (1 - p), so that the mean stays. Eval mode: x itself."""
        if mask_BD is None or not self.training:
            return super().forward(x_BD)
        return torch.where(mask_BD, x_BD / (1 - self.p), 0)


class MLPClassifier(nn.Module):
    """fc2(dropout(relu(norm(fc1(x))))).

    fc1 has no bias: the normalization subtracts it again, its gradient is rounding noise, and Adam, which divides by
    the gradient's size, would turn that noise into updates.
    """

    def __init__(self, config: MLPConfig, *, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__()
        assert config.features is not None
        assert config.classes is not None
        eps, momentum = config.batch_norm_eps, config.batch_norm_momentum
        self.fc1 = Linear(config.features, config.hidden, bias=False, dtype=param_dtype)
        self.norm = BatchNorm(config.hidden, eps, momentum, dtype=param_dtype)
        self.dropout = Dropout(config.dropout)
        self.fc2 = Linear(config.hidden, config.classes, bias=True, dtype=param_dtype)
        self.dtype = dtype

    def forward(self, inputs_BF: torch.Tensor, dropout_mask_BD: torch.Tensor | None = None) -> torch.Tensor:
        """inputs (B, F) -> logits (B, V).

        In train mode units are dropped by `dropout_mask` (B, D) bool, true where kept, or else by torch's generator.
        """
        x_BD = F.relu(self.norm(self.fc1(inputs_BF.to(self.dtype))))
        return self.fc2(self.dropout(x_BD, dropout_mask_BD))
