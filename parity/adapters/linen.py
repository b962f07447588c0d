"""Linen's modules as functions that tag."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn

from parity.adapters.tags import Function, of_source, tagged


def linen_function(
    module: nn.Module, variables: dict[str, Any] | None = None, mutable: Sequence[str] = (), **kwargs: Any
) -> Function:
    """`module.apply` as a function (params, *inputs) whose tags are the paths of Linen's own intermediates.

    variables: the other collections ({"batch_stats": ...}). mutable: those that the module changes, as BatchNorm's in
    train mode; then it is a function (params, buffers, *inputs) -> (output, buffers), where `buffers` holds these
    collections. kwargs go to the module's call, `train=False` for example. A submodule's path is its names joined by
    dots: "Dense_0", "block.norm".
    """

    def tag(call: Callable[..., Any], args: Any, call_kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **call_kwargs)
        path = ".".join(context.module.path)
        return tagged(output, path) if path and context.method_name == "__call__" else output

    def apply(held: dict[str, Any], *inputs: Any, **named: Any) -> Any:
        with nn.intercept_methods(tag):
            return module.apply({**(variables or {}), **held}, *inputs, **named, **kwargs)

    def function(params: Any, *inputs: Any, **named: Any) -> Any:
        return apply({"params": params}, *inputs, **named)

    def changing(params: Any, buffers: Any, *inputs: Any, **named: Any) -> Any:
        return apply({"params": params, **buffers}, *inputs, mutable=list(mutable), **named)

    return of_source(changing if mutable else function, module)
