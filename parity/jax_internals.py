"""What `parity` reads of JAX beyond its documented interface: equations, and the parameters of their primitives.

All of it stands here, so that a new JAX can break this file only; `tests/parity/test_jax_internals.py` says what.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from jax._src import source_info_util
from jax._src.interpreters import partial_eval
from jax._src.lax import lax as lax_internal
from jax._src.numpy import array_constructors
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxprs_in_params
from jax.extend.core.primitives import name_p

from parity.lines.line import Line, one_line

__all__ = ["ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Scan", "Var", "bind", "called_function",
           "constant_key", "constants_as_written", "draws_random_numbers", "inner_jaxprs", "scan_of", "tag_of",
           "user_line", "with_params"]  # fmt: skip

source_info_util.register_exclusion(__file__)  # `constants_as_written` stands between the user's line and JAX
TRACING = jax.make_user_context(None)  # part of the key of each of JAX's caches


class Scan(NamedTuple):
    """A scan's function, which takes constants, carry and a row, and how its inputs are divided among these."""

    function: ClosedJaxpr
    n_consts: int
    n_carry: int
    length: int
    reverse: bool


def tag_of(eqn: JaxprEqn) -> str | None:
    """The name that `jax.ad_checkpoint.checkpoint_name` gave to the equation's value; None for other equations."""
    return eqn.params["name"] if eqn.primitive is name_p else None


def inner_jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The functions within an equation."""
    return jaxprs_in_params(eqn.params)


def called_function(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The function that an equation calls once with its own inputs, if that is what it does."""
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(inner, Jaxpr) and not isinstance(inner, ClosedJaxpr):  # one class since JAX 0.11
        inner = ClosedJaxpr(inner, ())
    return inner if isinstance(inner, ClosedJaxpr) and len(inner.jaxpr.invars) == len(eqn.invars) else None


def bind(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """One equation, unchanged, with its own rule of differentiation and its own line."""
    names = source_info_util.current_name_stack() + eqn.source_info.name_stack
    with source_info_util.user_context(eqn.source_info.traceback, name_stack=names), eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def scan_of(eqn: JaxprEqn) -> Scan | None:
    """What a scan's equation does; None for other equations."""
    if eqn.primitive.name != "scan":
        return None
    p = eqn.params
    if "num_consts" in p:  # JAX 0.10
        n_consts, n_carry = p["num_consts"], p["num_carry"]
    elif "ft_in" in p:  # since JAX 0.11 they are counted in a tree
        consts, carry, _ = p["ft_in"].unpack()
        n_consts, n_carry = len(consts), len(carry)
    else:
        raise NotImplementedError(
            f"JAX {jax.__version__} describes a scan by {', '.join(p)}; parity.jax_internals expects num_consts and "
            "num_carry, or ft_in"
        )
    return Scan(p["jaxpr"], n_consts, n_carry, p["length"], p["reverse"])


def user_line(eqn: JaxprEqn) -> Line | None:
    """The line that made the equation: the innermost outside JAX and the libraries that it leaves out itself."""
    frame = source_info_util.user_frame(eqn.source_info.traceback)
    return frame and one_line(frame.file_name, frame.start_line, frame.function_name)


def with_params(
    eqn: JaxprEqn, change: Callable[[Any], Any], change_function: Callable[[ClosedJaxpr], ClosedJaxpr]
) -> JaxprEqn:
    """The equation with other parameters, and with other functions within it."""

    def changed(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return change_function(value)
        if isinstance(value, Jaxpr):
            function = change_function(ClosedJaxpr(value, ()))
            assert not function.consts, "a function without constants got some"
            return function.jaxpr
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(changed(part) for part in value)
        if isinstance(value, tuple) and any(isinstance(part, ClosedJaxpr) for part in value):
            return type(value)(*(changed(part) for part in value))
        return change(value)

    return eqn.replace(params={name: changed(value) for name, value in eqn.params.items()})


def draws_random_numbers(eqn: JaxprEqn) -> bool:
    """Whether the equation calls one of `jax.random`'s own functions."""
    inner = called_function(eqn)
    if inner is None or inner.jaxpr.debug_info is None:
        return False
    return "/jax/_src/random" in (inner.jaxpr.debug_info.func_filename or "").replace("\\", "/")


Constants = dict[tuple[np.dtype, tuple[int, ...], bytes], np.ndarray]


def constant_key(rounded: Any) -> tuple[np.dtype, tuple[int, ...], bytes]:
    """What a constant is known by: its dtype, shape and bits."""
    rounded = np.asarray(rounded)
    return rounded.dtype, rounded.shape, rounded.tobytes()


@contextmanager
def constants_as_written() -> Iterator[Constants]:
    """The float64 numbers of the Python code that is traced within it, by what they were rounded to there.

    JAX holds no function as traced already within it.
    """
    constants: Constants = {}
    convert, array = lax_internal._convert_element_type, array_constructors.array
    fold = partial_eval.const_fold_rules[lax_internal.convert_element_type_p]

    def remember(value: Any, dtype: Any) -> None:
        plain = isinstance(value, float | np.ndarray | np.generic) or (
            isinstance(value, list | tuple) and all(isinstance(x, float | int) for x in jax.tree.leaves(value))
        )
        if plain and dtype is not None and jax.numpy.issubdtype(dtype, np.floating):
            exact = np.asarray(value)
            if exact.dtype == np.float64 != np.dtype(dtype):
                constants.setdefault(constant_key(exact.astype(dtype)), exact)

    def remembering_convert(operand: Any, new_dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        remember(operand, new_dtype)
        return convert(operand, new_dtype, *args, **kwargs)

    def remembering_array(object: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        remember(object, dtype)
        return array(object, dtype, *args, **kwargs)

    def remembering_fold(values: Any, params: Any, *args: Any) -> Any:
        remember(values[0], params["new_dtype"])
        return fold(values, params, *args)

    with (
        mock.patch.dict(partial_eval.const_fold_rules, {lax_internal.convert_element_type_p: remembering_fold}),
        mock.patch.object(lax_internal, "_convert_element_type", remembering_convert),
        mock.patch.object(array_constructors, "array", remembering_array),
        mock.patch.object(jax.numpy, "array", remembering_array),
        TRACING(object()),
    ):
        yield constants
