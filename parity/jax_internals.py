"""What `parity` reads of JAX beyond its documented interface: equations, and the parameters of their primitives.

All of it stands here, so that a new JAX can break this file only; `tests/parity/test_jax_internals.py` says what.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from jax._src import source_info_util
from jax._src.interpreters import ad, partial_eval
from jax._src.lax import lax as lax_internal
from jax._src.numpy import array_constructors
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxprs_in_params
from jax.extend.core.primitives import name_p

from parity.lines.line import Line, one_line
from parity.lines.whose import whose

__all__ = ["ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Scan", "Var", "at", "bind", "called_function",
           "constant_key", "constants_as_written", "draws_random_numbers", "frames_of", "inner_jaxprs", "is_backward",
           "is_forward_again", "scan_of", "tag_of", "traced_with_lines", "user_line", "with_params"]  # fmt: skip

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
    with at(eqn), eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def at(eqn: JaxprEqn) -> AbstractContextManager[None]:
    """What is traced within it stands where the equation stands: in its own line, or else in that around it."""
    own = eqn.source_info.traceback
    around = source_info_util._source_info_context.context.traceback
    known = around is None or any(whose(frame.file) != "machinery" for frame in frames_of(eqn))
    names = source_info_util.current_name_stack() + eqn.source_info.name_stack
    return source_info_util.user_context(own if known else around, name_stack=names)


def frames_of(eqn: JaxprEqn) -> Iterator[Line]:
    """The calls that led to the equation, innermost first, up to where JAX began to trace the function around it."""
    traceback = eqn.source_info.traceback
    if traceback is None:
        return
    for code, place in zip(*traceback.raw_frames(), strict=True):
        frame = source_info_util.raw_frame_to_frame(code, place)
        yield one_line(frame.file_name, frame.start_line, frame.function_name)


def is_backward(eqn: JaxprEqn) -> bool:
    """Whether its own names say that it belongs to a backward pass."""
    return "transpose(" in str(eqn.source_info.name_stack)


def is_forward_again(eqn: JaxprEqn) -> bool:
    """Whether it computes a part of the forward pass again, within a backward pass."""
    return "rematted_computation" in str(eqn.source_info.name_stack)


@contextmanager
def traced_with_lines() -> Iterator[None]:
    """What is traced within it has the lines of this call, the rules of custom derivatives those of their own code.

    JAX holds no function as traced already within it.
    """
    transpose = ad.primitive_transposes[ad.custom_lin_p]

    def transpose_with_lines(cotangents: Any, *inputs: Any, bwd: Any, **params: Any) -> Any:
        return transpose(cotangents, *inputs, bwd=Rule(bwd), **params)

    with (
        mock.patch.dict(ad.primitive_transposes, {ad.custom_lin_p: transpose_with_lines}),
        mock.patch.object(source_info_util, "reset_name_stack", no_context),
        TRACING(object()),
    ):
        yield


class Rule(NamedTuple):
    """The rule of a custom derivative's backward pass, as a jitted function: traced for itself, with its own lines."""

    rule: Any

    def call_wrapped(self, *args: Any) -> list[Any]:
        """The cotangents; what JAX does not compute (None, a zero that is only named) stays as it is."""
        others: dict[int, Any] = {}

        def rule(*args: Any) -> list[Any]:
            outputs = self.rule.call_wrapped(*args)
            others.update({i: x for i, x in enumerate(outputs) if not isinstance(x, jax.Array)})
            return [None if i in others else x for i, x in enumerate(outputs)]

        return [others.get(i, x) for i, x in enumerate(jax.jit(rule)(*args))]


@contextmanager
def no_context() -> Iterator[None]:
    """The lines that JAX is at do not count within it, nor do the names."""
    holder = source_info_util._source_info_context
    before, holder.context = holder.context, source_info_util.new_source_info()
    try:
        yield
    finally:
        holder.context = before


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
