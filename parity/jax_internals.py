"""What `parity` reads of JAX beyond its documented interface: equations, and the parameters of their primitives.

All of it stands here, so that a new JAX can break this file only; `tests/parity/test_jax_internals.py` says what.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxprs_in_params
from jax.extend.core.primitives import name_p

__all__ = ["ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Scan", "Var", "bind", "called_function", "inner_jaxprs",
           "scan_of", "tag_of"]  # fmt: skip


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
    """One equation, unchanged, with its own rule of differentiation."""
    with eqn.ctx.manager:
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
