"""Batch normalization with the statistics of the whole batch, on however many processes.

Shapes: B batch, F features.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class AllReduceSum(torch.autograd.Function):
    """All-reduce of a tensor by sum, whose gradient is all-reduced too: each process has a loss of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """x of any shape -> its sum over the processes."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Gradient of that sum, summed over the processes."""
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class BatchNorm(nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, computed in float32 or wider, with the statistics of all processes' examples.

    torch.nn.SyncBatchNorm would do that, but on GPUs only.
    """

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        """x (B, F) -> (B, F) in the dtype of x; in train mode updates `running_mean` and `running_var`."""
        wide_BF = x_BF.to(self.weight.dtype)
        if self.training and dist.is_initialized():
            return self._over_processes(wide_BF).to(x_BF.dtype)
        return super().forward(wide_BF).to(x_BF.dtype)

    def _over_processes(self, x_BF: torch.Tensor) -> torch.Tensor:
        """The same number of examples on each process; Bessel's n/(n-1) counts them all."""
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        n = len(x_BF) * dist.get_world_size()
        mean_F = AllReduceSum.apply(x_BF.sum(0)) / n
        var_F = AllReduceSum.apply((x_BF - mean_F).square().sum(0)) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean_F, self.momentum)
            self.running_var.lerp_(var_F * n / (n - 1), self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        return (x_BF - mean_F) * (var_F + self.eps).rsqrt() * self.weight + self.bias
