"""Fused operations of torch by their parts, so that the statistics inside are seen too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
# Each with its form in place and, below, with that of the backward pass.
FUSED = (
    "native_layer_norm",
    "native_layer_norm_backward",
    "native_group_norm",
    "native_group_norm_backward",
    "native_batch_norm",
    "native_batch_norm_backward",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "batch_norm_backward",
    "_fused_rms_norm",
    "_fused_rms_norm_backward",
    "_softmax",
    "_softmax_backward_data",
    "_log_softmax",
    "_log_softmax_backward_data",
    "_safe_softmax",
    "logsumexp",
    "nll_loss_forward",
    "nll_loss_backward",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "mse_loss",
    "mse_loss_backward",
    "smooth_l1_loss",
    "smooth_l1_loss_backward",
    "huber_loss",
    "huber_loss_backward",
    "soft_margin_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "binary_cross_entropy_with_logits",
    "gelu",
    "gelu_backward",
    "silu",
    "silu_backward",
    "mish",
    "mish_backward",
    "elu",
    "elu_backward",
    "softplus",
    "softplus_backward",
    "hardswish",
    "hardswish_backward",
    "glu",
    "glu_backward",
    "log_sigmoid_forward",
    "log_sigmoid_backward",
    "sigmoid_backward",
    "tanh_backward",
    "addr",
    "lerp",
    "addcmul",
    "addcdiv",
    "var_mean",
    "std",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_weight_norm_interface",
)
TABLE: dict[Any, Callable[..., Any]] = {
    operation: decomposition_table[operation]
    for name in FUSED
    for overload in getattr(ATEN, name).overloads()
    if (operation := getattr(getattr(ATEN, name), overload)) in decomposition_table
    and not any(argument.is_out for argument in operation._schema.arguments)
}


def convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *args: Any) -> Any:
    """The bias apart from the products."""
    if bias is None:
        return NotImplemented
    products = ATEN.convolution.default(x, weight, None, *args)
    return products + bias.reshape(-1, *[1] * (products.ndim - 2))


def biased_product(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """beta * bias + alpha * product, without factors of 1."""

    def parts(
        bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1
    ) -> torch.Tensor:
        output = product(a, b) if alpha == 1 else alpha * product(a, b)
        return output if beta == 0 else output + (bias if beta == 1 else beta * bias)

    return parts


OWN: dict[Any, Callable[..., Any]] = {
    ATEN.convolution.default: convolution,
    ATEN.addmm.default: biased_product(torch.mm),
    ATEN.addmv.default: biased_product(torch.mv),
    ATEN.baddbmm.default: biased_product(torch.bmm),
}


@contextmanager
def unfused() -> Iterator[None]:
    """Within it torch itself takes the paths whose parts are operations: attention and recurrent layers."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = onednn


def parts_of(func: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """What computes the same as an operation by smaller ones; None where there is no such thing."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if len({x.dtype for x in tensors if x.is_floating_point()}) < 2:
        if func in TABLE:
            return TABLE[func]
        if func in OWN:
            return OWN[func]
        if (pure := without_write(func)) is not None:
            return lambda x, *rest, **named: x.copy_(TABLE[pure](x, *rest, **named))
    if func._schema.name.startswith("aten::_foreach_") and len(args[0]) > 1:
        return lambda *args, **kwargs: one_by_one(func, args, kwargs)
    return func.decompose if func._can_decompose() else None


def without_write(func: OpOverload) -> OpOverload | None:
    """The fused operation of which one is the form in place: of addcdiv_ addcdiv."""
    namespace, _, name = func._schema.name.partition("::")
    packet = getattr(ATEN, name[:-1], None) if namespace == "aten" and name.endswith("_") else None
    pure = getattr(packet, func._overloadname, None) if name[:-1] in FUSED else None
    return pure if pure in TABLE else None


def one_by_one(func: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operation on lists of tensors, tensor by tensor."""
    length = len(args[0])

    def one(value: Any, i: int) -> Any:
        return value[i : i + 1] if isinstance(value, list | tuple) and len(value) == length else value

    outputs = [
        func(*(one(value, i) for value in args), **{name: one(value, i) for name, value in kwargs.items()})
        for i in range(length)
    ]
    return None if outputs[0] is None else [output for part in outputs for output in part]
