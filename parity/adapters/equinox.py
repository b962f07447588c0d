"""Equinox's modules as functions that tag."""

from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import jax

from parity.adapters.tags import Function, of_source, tagged, with_names
from parity.pair.trees import key_name


def equinox_function(model: eqx.Module, call: Callable[..., Any] | None = None) -> tuple[Function, eqx.Module]:
    """An Equinox model as a function (params, *inputs), and its params, which are the model itself.

    call: how it is applied, (model, *inputs) -> output, where that is not `model(*inputs)`: a model for one example by
    `lambda model, x: jax.vmap(model)(x)`. Tags are the paths of its modules, fields and indices joined by dots. A call
    (model, state, *inputs) -> (output, state) makes a function for `buffers=state`.
    """

    def function(params: eqx.Module, *inputs: Any, **named: Any) -> Any:
        def apply(kind: type[str]) -> Any:
            renamed = with_name(params, "", kind)
            return renamed(*inputs, **named) if call is None else call(renamed, *inputs, **named)

        return with_names(apply)

    return of_source(function, model), model


def with_name(module: Any, name: str, kind: type[str]) -> Any:
    """A copy whose modules tag their outputs: each is of a subclass of its own class, which holds its name."""

    def inside(path: tuple[Any, ...], part: Any) -> Any:
        if not isinstance(part, eqx.Module):
            return part
        return with_name(part, ".".join([*([name] if name else []), *map(key_name, path)]), kind)

    is_part = lambda x: isinstance(x, eqx.Module) and x is not module
    copied = jax.tree_util.tree_map_with_path(inside, module, is_leaf=is_part)
    if not name or not callable(module):
        return copied
    cls: Any = type(module)
    named: Any = object.__new__(tagging(cls))
    named.__dict__.update(copied.__dict__, parity_name=kind(name))
    return named


@cache
def tagging(cls: Any) -> type:
    """A subclass whose calls tag; its name is static, and goes through scan, vmap, jit and checkpoint with it."""

    class Tagging(cls):
        parity_name: str = eqx.field(static=True, default="")

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return tagged(super().__call__(*args, **kwargs), str(self.parity_name))

    Tagging.__name__, Tagging.__qualname__ = cls.__name__, cls.__qualname__
    return Tagging
