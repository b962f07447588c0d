"""Flax modules as functions that tag the output of every submodule with its path, for `parity.compare`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax
from flax import linen as nn
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jax_impl.tree import flatten, unflatten

Function = Callable[..., Any]  # (params, *inputs) -> output


def linen_function(module: nn.Module, variables: dict[str, Any] | None = None, **kwargs: Any) -> Function:
    """`module.apply` as a function (params, *inputs) whose tags are the paths of Linen's own intermediates.

    variables: the other collections ({"batch_stats": ...}). kwargs go to the module's call, `train=False` for
    example. A submodule's path is its names joined by dots: "Dense_0", "block.norm".
    """

    def tag(call: Callable[..., Any], args: Any, call_kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **call_kwargs)
        path = ".".join(context.module.path)
        return tagged(output, path) if path and context.method_name == "__call__" else output

    def function(params: Any, *inputs: Any) -> Any:
        with nn.intercept_methods(tag):
            return module.apply({"params": params, **(variables or {})}, *inputs, **kwargs)

    return of_source(function, module)


def nnx_function(model: nnx.Module) -> tuple[Function, dict[str, Any]]:
    """An NNX model as a function (params, *inputs), and its params: a nested dict of arrays with string keys.

    Tags are the paths of its modules, keys and indices joined by dots. Everything but `nnx.Param` (statistics,
    random states) stays as it is in `model`.
    """
    parts: Any = nnx.split(model, nnx.Param, ...)
    graphdef, state, rest = parts
    leaves = {".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}
    params = unflatten({name: variable.get_value() for name, (_, variable) in leaves.items()})

    def function(params: Any, *inputs: Any) -> Any:
        values = flatten(params)
        filled = nnx.from_flat_state(
            [(path, variable.replace(values[name])) for name, (path, variable) in leaves.items()]
        )
        bound = nnx.merge(graphdef, filled, rest)
        with calls_tagged(bound):
            return bound(*inputs)

    return of_source(function, model), params


def of_source(function: Function, model: Any) -> Function:
    """The function, with the file of the model's class; see `parity.exercised.source_files`."""
    function.source = getattr(sys.modules[type(model).__module__], "__file__", None) or ""  # type: ignore[attr-defined]
    return function


@contextmanager
def calls_tagged(model: nnx.Module) -> Iterator[None]:
    """Every call of a submodule of `model` tags its output."""
    parts = [(".".join(map(str, path)), part) for path, part in nnx.iter_modules(model)]
    names = {id(part): name for name, part in parts if name}

    def tagging(call: Callable[..., Any]) -> Callable[..., Any]:
        def tagging_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = call(self, *args, **kwargs)
            return tagged(output, names[id(self)]) if id(self) in names else output

        return tagging_call

    with ExitStack() as stack:
        for cls in {type(part) for _, part in parts if callable(part)}:
            stack.enter_context(mock.patch.object(cls, "__call__", tagging(cls.__call__)))
        yield


def tagged(output: Any, name: str) -> Any:
    """`output` with its tag; several arrays become "name.0", "name.1", as torch's do."""
    if isinstance(output, tuple | list):
        return type(output)(tagged(part, f"{name}.{i}") for i, part in enumerate(output))
    return checkpoint_name(output, name) if isinstance(output, jax.Array) else output
