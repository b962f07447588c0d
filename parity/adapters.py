"""Flax modules as functions that tag the output of every submodule with its path, for `parity.compare`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax
from flax import linen as nn
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jax_impl.tree import flatten, unflatten

Function = Callable[..., Any]  # (params, *inputs) -> output


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


def nnx_function(model: nnx.Module) -> tuple[Function, dict[str, Any]]:
    """An NNX model as a function (params, *inputs), and its params: a nested dict of arrays with string keys.

    Tags are the paths of its modules, keys and indices joined by dots. Everything but `nnx.Param` (statistics,
    random states) stays as it is in `model`; see `nnx_function_with_buffers` for train mode.
    """
    function, params, buffers = nnx_function_with_buffers(model)
    return of_source(lambda params, *inputs, **named: function(params, buffers, *inputs, **named)[0], model), params


def nnx_function_with_buffers(model: nnx.Module) -> tuple[Function, dict[str, Any], dict[str, Any]]:
    """An NNX model as a function (params, buffers, *inputs) -> (output, buffers), its params, and its buffers.

    Buffers are BatchNorm's statistics, `nnx.BatchStat`: in train mode the function returns others.
    """
    parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    graphdef, state, statistics, rest = parts
    given, held = named_variables(state), named_variables(statistics)

    def function(params: Any, buffers: Any, *inputs: Any, **named: Any) -> Any:
        filled = (with_values(given, params), with_values(held, buffers))
        bound = nnx.merge(graphdef, *filled, jax.tree.map(lambda x: x, rest))  # its own counts of random keys
        with calls_tagged(bound):
            output = bound(*inputs, **named)
        return output, values_of(named_variables(nnx.state(bound, nnx.BatchStat)))

    return of_source(function, model), values_of(given), values_of(held)


Variables = dict[str, tuple[Any, Any]]  # name -> path and variable


def named_variables(state: Any) -> Variables:
    """The variables of a state by their paths, joined by dots."""
    return {".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}


def values_of(variables: Variables) -> dict[str, Any]:
    """Their arrays as a nested dict with string keys."""
    return unflatten({name: variable.get_value() for name, (_, variable) in variables.items()})


def with_values(variables: Variables, values: Any) -> Any:
    """A state of new variables that hold these arrays."""
    arrays = flatten(values)
    return nnx.from_flat_state([(path, variable.replace(arrays[name])) for name, (path, variable) in variables.items()])


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
