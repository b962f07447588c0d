"""torch's matrix products again, with the terms of each number added one after the other.

A BLAS may add them in any order, and which it takes depends on the processor. Where the terms are alike, as in
p_v W_v over tokens v that the first batches lack, the roundings of one long sum all go the same way, and those of
several partial sums, added at the end, are smaller: 6 times in the gradient before a head of 256 tokens. Neither is
wrong, so a reference whose BLAS keeps partial sums must not be the measure of a port whose BLAS keeps one.
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
