"""Haiku's modules as functions that tag."""

from collections.abc import Callable
from typing import Any

import haiku as hk

from parity.adapters.tags import Function, tagged


def haiku_function(apply: Callable[..., Any]) -> Function:
    """`apply` of a transformed function, without rng, as a function whose tags are the paths of Haiku's modules.

    A path is the module's name in the params with dots, "block.linear". Of `hk.without_apply_rng(hk.transform(f))` it
    is a function (params, *inputs); of `transform_with_state`, (params, buffers, *inputs) -> (output, buffers), whose
    state goes to `buffers=`.
    """

    def tag(call: Callable[..., Any], args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
        output = call(*args, **kwargs)
        named = context.method_name == "__call__"
        return tagged(output, context.module.module_name.replace("/", ".")) if named else output

    def function(*args: Any, **kwargs: Any) -> Any:
        with hk.intercept_methods(tag):
            return apply(*args, **kwargs)

    function.source = ""  # type: ignore[attr-defined]  # what was traced without it is to be traced again
    return function
