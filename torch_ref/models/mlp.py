"""Linear, BatchNorm, ReLU, Dropout, Linear: the model whose train and eval modes differ.

Shapes: B batch, F features, D hidden units, K classes.
"""

import torch
import torch.distributed as dist
from torch import nn

from torch_ref.models.layers import Linear
from twinstep.config import MLPConfig


class AllSum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient, since each process has a loss of its own."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        """x of any shape -> its sum over the processes."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        """Gradient of that sum, summed over the processes."""
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class BatchNorm(nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, computed in float32 or wider; over several processes, statistics of the whole batch.

    torch.nn.SyncBatchNorm would do that, but on GPUs only.
    """

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """x (B, D) -> (B, D) in the type of x; in train mode updates `running_mean` and `running_var`."""
        wide_BD = x_BD.to(self.weight.dtype)
        if self.training and dist.is_initialized():
            return self._over_processes(wide_BD).to(x_BD.dtype)
        return super().forward(wide_BD).to(x_BD.dtype)

    def _over_processes(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The same number of examples on each process; Bessel's n/(n-1) counts them all."""
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        n = len(x_BD) * dist.get_world_size()
        mean_D = AllSum.apply(x_BD.sum(0)) / n
        var_D = AllSum.apply((x_BD - mean_D).square().sum(0)) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean_D, self.momentum)
            self.running_var.lerp_(var_D * n / (n - 1), self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        return (x_BD - mean_D) * (var_D + self.eps).rsqrt() * self.weight + self.bias


class Dropout(nn.Dropout):
    """torch.nn.Dropout, or in train mode a mask (B, D) bool, true where kept, that the caller drew."""

    def forward(self, x_BD: torch.Tensor, mask_BD: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, D) -> (B, D); what is kept grows by 1 / (1 - p), so that the mean stays. Eval mode: x itself."""
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
