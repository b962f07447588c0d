"""Muon: momentum, orthogonalized by Newton-Schulz (Keller Jordan, https://kellerjordan.github.io/posts/muon).

Shapes: R rows, Q columns, `...` leading axes of stacked matrices.
"""

from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; chosen for a steep slope at zero
EPS = 1e-7  # added to the Frobenius norm


def orthogonalize(x_RQ: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """Push the singular values of each matrix (..., R, Q) towards 1, into about [0.7, 1.2]; computed in `dtype`.

    Each iteration is X <- a X + (b A + c A^2) X with A = X X^T, on the wide orientation, where A is smaller.
    """
    a, b, c = COEFFICIENTS
    x_RQ = x_RQ.to(dtype)
    tall = x_RQ.shape[-2] > x_RQ.shape[-1]
    if tall:
        x_RQ = x_RQ.mT
    x_RQ = x_RQ / (torch.linalg.norm(x_RQ, dim=(-2, -1), keepdim=True) + EPS)
    for _ in range(steps):
        a_RR = x_RQ @ x_RQ.mT
        x_RQ = a * x_RQ + (b * a_RR + c * (a_RR @ a_RR)) @ x_RQ
    return x_RQ.mT if tall else x_RQ


def shape_scale(shape: tuple[int, ...]) -> float:
    """max(1, rows/columns)^1/2: a tall matrix (out > in) takes larger steps."""
    return max(1.0, shape[-2] / shape[-1]) ** 0.5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum as an EMA without bias correction, orthogonalized, with decoupled weight decay.

    m <- mu m + (1 - mu) g;  u = mu m + (1 - mu) g;  p <- p - lr (scale * orthogonalize(u) + wd p)
    Source: karpathy/nanochat, nanochat/muon.py. torch.optim.Muon differs: it computes in bfloat16, keeps the norm above
    EPS instead of adding it, and its default weight decay is 0.1.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float,
        *,
        steps: int,
        dtype: torch.dtype,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.steps, self.dtype = steps, dtype
        self.orthogonalize = orthogonalize

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter; all must have a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            mu, lr, decay = group["momentum"], group["lr"], group["weight_decay"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - mu)
                direction = self.orthogonalize(p.grad.lerp(buffer, mu), self.steps, self.dtype)
                p.mul_(1 - lr * decay).add_(direction.to(p.dtype), alpha=-lr * shape_scale(p.shape))
