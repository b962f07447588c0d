"""What every adapter does with a submodule's output, and with the function that it returns."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax
from jax.ad_checkpoint import checkpoint_name

Function = Callable[..., Any]  # (params, *inputs) -> output


def tagged(output: Any, name: str) -> Any:
    """`output` with its tag; several arrays become "name.0", "name.1", as torch's do."""
    if isinstance(output, tuple | list):
        parts = [tagged(part, f"{name}.{i}") for i, part in enumerate(output)]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return checkpoint_name(output, name) if isinstance(output, jax.Array) else output


@contextmanager
def calls_tagged(classes: Iterable[type], name_of: Callable[[Any], str]) -> Iterator[None]:
    """Every call of an object of these classes tags its output with its name, if it has one."""

    def tagging(call: Callable[..., Any]) -> Callable[..., Any]:
        def tagging_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = call(self, *args, **kwargs)
            return tagged(output, str(name)) if (name := name_of(self)) else output

        return tagging_call

    with ExitStack() as stack:
        for cls in set(classes):
            stack.enter_context(mock.patch.object(cls, "__call__", tagging(cls.__call__)))
        yield


class SameName(str):
    """A name that counts as equal to any other: modules that bear such names can be stacked into one."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return 0


def with_names(call: Callable[[type[str]], Any]) -> Any:
    """`call(str)`, whose names tell JAX equal layers apart, so that each is traced for itself; or, where it stacks
    layers while it runs, which must then be equal, `call(SameName)`."""
    try:
        return call(str)
    except (ValueError, TypeError):
        return call(SameName)


def of_source(function: Function, model: Any) -> Function:
    """The function, with the file of the model's class; see `parity.exercised.source_files`."""
    function.source = getattr(sys.modules[type(model).__module__], "__file__", None) or ""  # type: ignore[attr-defined]
    return function
