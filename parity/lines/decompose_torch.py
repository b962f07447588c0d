"""Fused operations of torch by their parts, so that the statistics inside are seen too."""

import math
from collections.abc import Callable, Iterator, Sequence
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
    "native_layer_norm_backward",
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


def variance(
    x: torch.Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> torch.Tensor:
    """The mean of the centred numbers' squares."""
    return variance_and_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def standard_deviation(x: torch.Tensor, dim: Any = None, **options: Any) -> torch.Tensor:
    """The root of the variance."""
    return variance(x, dim, **options).sqrt()


def variance_and_mean(
    x: torch.Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all dimensions where none is named; torch's own correction is 1."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(x.ndim))
    mean = x.mean(dims, keepdim=True)
    squares, correction = (x - mean).square(), 1 if correction is None else correction
    count = math.prod(x.shape[i] for i in dims)
    variance = squares.mean(dims, keepdim=True)
    if correction != 0:
        variance = variance * (count / (count - correction) if count > correction else math.nan)
    if keepdim or not dims:
        return variance, mean
    return variance.squeeze(dims), mean.squeeze(dims)


def normalize(x: torch.Tensor, dims: list[int], eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centred numbers over their deviation, the mean and the inverse deviation."""
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    inverse = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    return centred * inverse, mean, inverse


def layer_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Over the last dimensions."""
    output, mean, inverse = normalize(x, list(range(x.ndim - len(shape), x.ndim)), eps)
    output = output if weight is None else output * weight
    return output if bias is None else output + bias, mean, inverse


def group_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    examples: int,
    channels: int,
    _: int,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Over the channels of a group and all places."""
    output, mean, inverse = normalize(x.reshape(examples, groups, -1), [2], eps)
    output, by_channel = output.reshape(x.shape), (channels, *[1] * (x.ndim - 2))
    output = output if weight is None else output * weight.reshape(by_channel)
    output = output if bias is None else output + bias.reshape(by_channel)
    return output, mean.squeeze(2), inverse.squeeze(2)


OWN: dict[Any, Callable[..., Any]] = {
    ATEN.convolution.default: convolution,
    ATEN.addmm.default: biased_product(torch.mm),
    ATEN.addmv.default: biased_product(torch.mv),
    ATEN.baddbmm.default: biased_product(torch.bmm),
    ATEN.var.correction: variance,
    ATEN.std.correction: standard_deviation,
    ATEN.var_mean.correction: variance_and_mean,
    ATEN.native_layer_norm.default: layer_norm,
    ATEN.native_group_norm.default: group_norm,
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
