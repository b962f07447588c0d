"""What `parity.jax_internals` takes for granted of this JAX, one thing a test; the message says what has changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from parity import jax_internals

X = jnp.arange(3.0)


def equations(function, *args):
    return jax.make_jaxpr(function)(*args).jaxpr.eqns


def changed(what: str) -> str:
    return f"JAX {jax.__version__} {what}: mend parity/jax_internals.py, which keeps the older releases' way too"


def test_a_tag_is_an_equation_with_a_name():
    names = [jax_internals.tag_of(eqn) for eqn in equations(lambda x: checkpoint_name(2 * x, "doubled"), X)]
    assert names == [None, "doubled"], changed("writes the tags of checkpoint_name in another way")


def custom_jvp(x):
    function = jax.custom_jvp(jnp.sin)
    function.defjvp(lambda primals, tangents: (function(*primals), tangents[0]))
    return function(x)


def custom_vjp(x):
    function = jax.custom_vjp(jnp.sin)
    function.defvjp(lambda x: (function(x), None), lambda _, g: (g,))
    return function(x)


CALLS = {"jit": jax.jit(jnp.sin), "checkpoint": jax.checkpoint(jnp.sin), "jvp": custom_jvp, "vjp": custom_vjp}


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_holds_the_function_that_it_calls(kind):
    (eqn,) = equations(CALLS[kind], X)
    inner = jax_internals.called_function(eqn)
    assert inner is not None, changed(f"keeps the function of {eqn.primitive} under none of {sorted(eqn.params)}")
    assert [e.primitive.name for e in inner.jaxpr.eqns] == ["sin"]
    (found,) = jax_internals.inner_jaxprs(eqn)
    assert [e.primitive.name for e in found.eqns] == ["sin"], changed("hides the functions within an equation")


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_tells_constants_carry_and_rows_apart(reverse):
    def function(w, x, rows):
        body = lambda carry, row: ((w * carry[0] + row + x, carry[1] + 1), row)
        return jax.lax.scan(body, (x, 0), rows, reverse=reverse)

    (eqn,) = equations(function, 2.0, 1.0, jnp.ones(5))
    scan = jax_internals.scan_of(eqn)
    assert scan is not None, changed("calls its scan otherwise")
    assert scan[1:] == (2, 2, 5, reverse), changed("counts a scan's inputs otherwise")
    assert len(scan.function.jaxpr.invars) == 2 + 2 + 1, changed("gives a scan's function other inputs")
    assert jax_internals.scan_of(equations(jnp.sin, X)[0]) is None


def test_a_scan_that_is_described_in_an_unknown_way_is_refused_by_name(monkeypatch):
    (eqn,) = equations(lambda x: jax.lax.scan(lambda c, row: (c + row, row), 0.0, x), X)
    unknown = {name: value for name, value in eqn.params.items() if name not in ("num_consts", "ft_in")}
    with pytest.raises(NotImplementedError, match=rf"JAX {jax.__version__} describes a scan by .*parity.jax_internals"):
        jax_internals.scan_of(eqn.replace(params=unknown))


def test_an_equation_can_be_evaluated_again_with_its_own_derivative():
    """relu's rule gives 0 at a tie, that of the maximum in its body one half."""
    (eqn,) = equations(jax.nn.relu, X)
    again = lambda x: jax_internals.bind(eqn, [x])[0]
    np.testing.assert_array_equal(again(X), jax.nn.relu(X), err_msg=changed("evaluates an equation otherwise"))
    np.testing.assert_array_equal(jax.grad(lambda x: again(x).sum())(jnp.zeros(3)), np.zeros(3))


def test_literals_and_variables_are_of_two_classes():
    (eqn,) = equations(lambda x: x + 2.0, X)
    kinds = [type(atom) for atom in eqn.invars]
    assert kinds == [jax_internals.Var, jax_internals.Literal], changed("has other kinds of inputs")
    assert eqn.invars[1].val == 2
