"""Any JAX function truly in float64, although it casts to narrower numbers inside."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.jax_internals import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    at,
    bind,
    called_function,
    constant_key,
    constants_as_written,
    draws_random_numbers,
    user_line,
    with_params,
)
from parity.lines.line import Line

# Bits mean something at the dtype that the code was written for.
BITS = ("bitcast_convert_type", "rng_bit_generator", "rng_uniform", "nextafter")
OPAQUE = ("pallas_call", "pure_callback", "io_callback", "debug_callback", "ffi_call", "custom_call")


def widened(
    function: Callable[..., Any], casts: list[Line] | None = None, narrow: list[str] | None = None
) -> Callable[..., Any]:
    """`function` with every floating number narrower than float64 widened, constants and casts included.

    It is traced, and each equation is applied again to float64 operands. Tags, lines and custom derivatives stay;
    `jax.random` draws as written, and its numbers are widened. The result is traceable, and returns float64. To be
    called with x64 enabled. `casts` receives each line that casts, once; `narrow` the primitives that no dtype can be
    given from outside, with their lines: they compute as written.
    """

    def wide(*args: Any, **kwargs: Any) -> Any:
        widening = Widening([] if casts is None else casts, [] if narrow is None else narrow)
        return widening.trace_and_evaluate(function, (args, kwargs), (args, kwargs))

    return wide


class Widening:
    """One evaluation in float64, and what it met on the way."""

    def __init__(self, casts: list[Line], narrow: list[str]) -> None:
        self.casts, self.narrow = casts, narrow
        self.constants: dict[Any, np.ndarray] = {}  # what numbers of the code were before they were rounded

    def trace_and_evaluate(self, function: Callable[..., Any], shapes: tuple[Any, dict], values: Any) -> Any:
        """`function(*values[0], **values[1])` in float64, traced at the dtypes of `shapes`."""
        args, kwargs = shapes
        with constants_as_written() as constants:
            closed, output = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
        self.constants |= constants
        outputs = self.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(values))
        return jax.tree.unflatten(jax.tree.structure(output), outputs)

    def evaluate(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The outputs of a jaxpr in float64."""
        values: dict[Var, Any] = {}

        def read(atom: Any) -> Any:
            return self.constant(atom.val) if isinstance(atom, Literal) else values[atom]

        values.update(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        values.update(zip(jaxpr.invars, map(wide_value, args), strict=True))
        for eqn in jaxpr.eqns:
            outputs = self.apply(eqn, [read(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, map(wide_value, outputs), strict=True))
        return [wide_value(read(atom)) for atom in jaxpr.outvars]

    def apply(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        """One equation on float64 operands."""
        name = eqn.primitive.name
        if name == "convert_element_type" and is_narrow(eqn.params["new_dtype"]):
            self.note(user_line(eqn))
        if name in OPAQUE:
            self.note_narrow(eqn)
            return as_written(eqn, inputs)
        if name in BITS or draws_random_numbers(eqn):
            return as_written(eqn, inputs)
        if name == "reduce_precision":
            return inputs
        if name in ("custom_jvp_call", "custom_vjp_call"):
            with at(eqn):
                return self.with_own_derivative(eqn, inputs)
        if name in ("jit", "pjit") and (inner := called_function(eqn)) is not None:
            with at(eqn):
                return self.evaluate(inner.jaxpr, inner.consts, inputs)
        wide_eqn = with_params(eqn, wide_param, self.wide_function)
        try:
            return bind(wide_eqn, inputs)
        except (TypeError, ValueError, NotImplementedError):
            self.note_narrow(eqn)
            return as_written(eqn, inputs)

    def note_narrow(self, eqn: JaxprEqn) -> None:
        """A primitive that computes as written."""
        if (part := f"{eqn.primitive.name} at {user_line(eqn)}") not in self.narrow:
            self.narrow.append(part)

    def note(self, cast: Line | None) -> None:
        """A line that casts."""
        if cast is not None and cast not in self.casts:
            self.casts.append(cast)

    def constant(self, value: Any) -> Any:
        """Numbers in the code, as exact as they were before they were rounded to a dtype."""
        if isinstance(value, jax.core.Tracer) or not is_narrow(getattr(value, "dtype", np.int32)):
            return wide_value(value)
        if (exact := self.constants.get(constant_key(value))) is not None:
            return exact
        value = np.asarray(value)
        if value.ndim == 0 and jnp.issubdtype(value.dtype, np.floating):
            return np.asarray(shortest(float(value), value.dtype), np.float64)
        return value.astype(wide_dtype(value.dtype))

    def wide_function(self, function: ClosedJaxpr) -> ClosedJaxpr:
        """A function within an equation, from float64 to float64."""
        shapes = [wide_shape(variable) for variable in function.jaxpr.invars]
        return jax.make_jaxpr(lambda *args: self.evaluate(function.jaxpr, function.consts, args))(*shapes)

    def with_own_derivative(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        """A function with a custom derivative; its rule is traced at the dtypes it was written for, then widened."""
        function = called_function(eqn)
        assert function is not None, f"{eqn.primitive} has no function"
        shapes = [written_shape(v) for v in eqn.invars]
        moving = [i for i, shape in enumerate(shapes) if jnp.issubdtype(shape.dtype, np.inexact)]
        results = [i for i, v in enumerate(eqn.outvars) if jnp.issubdtype(written_shape(v).dtype, np.inexact)]

        def of_moving(args: Sequence[Any]) -> Callable[..., list[Any]]:
            def written(*values: Any) -> list[Any]:
                given = dict(zip(moving, values, strict=True))
                outputs = bind(eqn, [given.get(i, x) for i, x in enumerate(args)])
                return [outputs[i] for i in results]

            return written

        def push(args: Sequence[Any], tangents: Sequence[Any]) -> Any:
            return jax.jvp(of_moving(args), [args[i] for i in moving], list(tangents))[1]

        def pull(args: Sequence[Any], cotangents: Sequence[Any]) -> Any:
            return jax.vjp(of_moving(args), *(args[i] for i in moving))[1](list(cotangents))

        def call(*args: Any) -> list[Any]:
            return self.evaluate(function.jaxpr, function.consts, args)

        if eqn.primitive.name == "custom_jvp_call":
            forward = jax.custom_jvp(call)

            @forward.defjvp
            def _(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
                outputs = forward(*primals)
                given = [tangents[i] for i in moving]
                found = self.trace_and_evaluate(push, ((shapes, [shapes[i] for i in moving]), {}), (primals, given))
                filled = dict(zip(results, found, strict=True))
                return outputs, [filled.get(i, np.zeros(x.shape, jax.dtypes.float0)) for i, x in enumerate(outputs)]

            return forward(*inputs)

        backward = jax.custom_vjp(call)

        def bwd(args: Sequence[Any], cotangents: Sequence[Any]) -> Any:
            outputs = [written_shape(eqn.outvars[i]) for i in results]
            given = [cotangents[i] for i in results]
            found = self.trace_and_evaluate(pull, ((shapes, outputs), {}), (args, given))
            filled = dict(zip(moving, found, strict=True))
            return tuple(filled.get(i) for i in range(len(args)))

        backward.defvjp(lambda *args: (call(*args), args), bwd)
        return backward(*inputs)


def as_written(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """The equation at the dtypes that it was traced with."""
    dtypes = [written_shape(variable).dtype for variable in eqn.invars]
    narrow = [
        jax.lax.convert_element_type(x, dtype) if is_narrow(dtype) else x
        for x, dtype in zip(inputs, dtypes, strict=True)
    ]
    return bind(eqn, narrow)


def wide_dtype(dtype: Any) -> Any:
    """float64 for a narrower floating dtype, complex128 for complex64; any other dtype as it is."""
    return np.dtype(np.complex128 if jnp.issubdtype(dtype, np.complexfloating) else np.float64)


def is_narrow(dtype: Any) -> bool:
    """Whether a dtype is floating (or complex) and narrower than float64 (or complex128)."""
    return jnp.issubdtype(dtype, np.inexact) and np.dtype(dtype) != wide_dtype(dtype)


def wide_value(value: Any) -> Any:
    """The value in float64, if it is floating."""
    dtype = getattr(value, "dtype", None)
    return jax.lax.convert_element_type(value, wide_dtype(dtype)) if dtype is not None and is_narrow(dtype) else value


def written_shape(atom: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a value of a jaxpr, as traced."""
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def wide_shape(atom: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a value of a jaxpr, widened."""
    shape, dtype = atom.aval.shape, atom.aval.dtype
    return jax.ShapeDtypeStruct(shape, wide_dtype(dtype) if is_narrow(dtype) else dtype)


def wide_param(value: Any) -> Any:
    """A parameter of a primitive: dtypes are widened, algorithms of products at narrower dtypes left out."""
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return wide_dtype(value) if is_narrow(value) else value
    return None if isinstance(value, jax.lax.DotAlgorithmPreset | jax.lax.DotAlgorithm) else value


def shortest(rounded: float, dtype: Any) -> float:
    """The decimal that a number was rounded from, if it has few enough digits to tell; else the number itself."""
    for digits in range(1, jnp.finfo(dtype).precision + 1):
        decimal = float(f"{rounded:.{digits}g}")
        if float(np.asarray(decimal).astype(dtype)) == rounded:
            return decimal
    return rounded
