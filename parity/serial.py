"""torch's matrix products again, with the terms of each number added one after the other.

A BLAS may add them in any order, and which it takes depends on the processor. After a head's first step from zero all
tokens v that the batch lacked are as probable and have like rows, so the terms p_v W_v before the head are the same
number many times over: in one long sum they are all rounded the same way, and the result is off by 30 ulp; a BLAS that
keeps several partial sums is off by 5. Neither is wrong, so the second must not be the measure of a port on the first.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class SerialProducts(TorchDispatchMode):
    """Within it every matrix product, forward and backward, is a `serial_product`."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        match function:
            case torch.ops.aten.mm.default | torch.ops.aten.bmm.default:
                return serial_product(*args)
            case torch.ops.aten.addmm.default if not kwargs:  # a bias, and a product
                return args[0] + serial_product(*args[1:])
        return function(*args, **(kwargs or {}))


def serial_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (..., R, K) b (..., K, Q) -> (..., R, Q), one accumulator to each number."""
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for column, row in zip(a.movedim(-1, 0).contiguous().unsqueeze(-1), b.movedim(-2, 0).unsqueeze(-2), strict=True):
        total.addcmul_(column, row)
    return total
