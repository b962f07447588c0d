"""NNX's modules as functions that tag."""

from typing import Any

import jax
from flax import nnx

from jax_impl.tree import flatten, unflatten
from parity.adapters.tags import Function, calls_tagged, of_source, with_names

NAME = "parity_name"  # a static attribute: it goes through scan, vmap, jit and remat with the module


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

        def call(kind: type[str]) -> Any:
            bound = nnx.merge(graphdef, *filled, jax.tree.map(lambda x: x, rest))  # its own counts of random keys
            with calls_tagged(name_modules(bound, kind), lambda part: getattr(part, NAME, "")):
                output = bound(*inputs, **named)
            return output, values_of(named_variables(nnx.state(bound, nnx.BatchStat)))

        return with_names(call)

    return of_source(function, model), values_of(given), values_of(held)


def name_modules(model: nnx.Module, kind: type[str]) -> set[type]:
    """Gives each submodule that can be called its path as a name of this kind; returns their classes."""
    parts = [(kind(".".join(map(str, path))), part) for path, part in nnx.iter_modules(model)]
    callables = [(name, part) for name, part in parts if len(name) and callable(part)]
    for name, part in callables:
        setattr(part, NAME, name)
    return {type(part) for _, part in callables}


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
