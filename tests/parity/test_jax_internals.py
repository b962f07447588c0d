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


def lines(eqn):
    """The lines of this file that led to the equation, innermost first."""
    return [line.first for line in jax_internals.frames_of(eqn) if line.file == __file__]


def line_of(function, lines_on=0):
    return function.__code__.co_firstlineno + lines_on


def test_a_jitted_function_that_is_traced_knows_no_line_of_its_call():
    called = lambda x: jnp.var(x)
    (eqn,) = equations(called, X)
    inner = jax_internals.called_function(eqn).jaxpr.eqns
    assert lines(eqn) == [line_of(called)], changed("has other frames around an equation")
    assert [lines(e) for e in inner] == [[]] * len(inner), changed("shows where a jitted function was called first")


def test_an_equation_stands_in_the_line_around_it_where_it_has_none():
    def again(x):
        (eqn,) = equations(jnp.var, x)
        (outer,) = equations(lambda x: jnp.var(x), x)
        with jax_internals.at(outer):
            return jax_internals.bind(jax_internals.called_function(eqn).jaxpr.eqns[0], [x])

    (eqn,) = equations(again, X)
    assert lines(eqn) == [line_of(again, 2)], changed("keeps its context of lines elsewhere")


def test_the_names_of_an_equation_tell_the_backward_pass():
    function = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))
    forward, backward = equations(jax.value_and_grad(function), 1.0)[0], equations(jax.grad(function), 1.0)[-1]
    assert not jax_internals.is_backward(forward)
    assert jax_internals.is_backward(backward), changed("names a backward pass otherwise")
    again = [jax_internals.is_forward_again(e) for e in jax_internals.called_function(backward).jaxpr.eqns]
    assert any(again), changed("names what it rematerializes otherwise")
    assert not all(again)


def test_the_rule_of_a_custom_derivative_has_its_own_lines():
    rule = lambda _, g: (jnp.exp(g),)

    def function(x):
        own = jax.custom_vjp(jnp.sin)
        own.defvjp(lambda x: (jnp.cos(x), None), rule)
        return own(x)

    def exp():
        found = equations(jax.grad(function), 1.0)
        inner = [e for eqn in found if (call := jax_internals.called_function(eqn)) for e in call.jaxpr.eqns]
        return next(e for e in [*found, *inner] if e.primitive.name == "exp")

    assert lines(exp()) == [line_of(function, 3)], changed("gives a rule's own lines by itself: drop `Rule`")
    with jax_internals.traced_with_lines():
        assert lines(exp()) == [line_of(rule)], changed("calls a rule otherwise")
