import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.ad_checkpoint import checkpoint_name
from torch import nn

from parity.capture import capture_jax, capture_torch, tagged_shapes

X = np.array([[-1.0, 0.0, 2.0]], np.float32)


def through_every_kind_of_function(w, x):
    """y = relu(sin(2 w x)) three times scaled by 1.5 in a scan, summed; a tag in each kind of inner function."""
    y = checkpoint_name(2 * w * x, "outside")
    y = jax.checkpoint(lambda z: checkpoint_name(jnp.sin(z), "in_remat"))(y)
    y = jax.jit(lambda z: checkpoint_name(jax.nn.relu(z), "in_jit"))(y)

    @jax.custom_jvp
    def own(z):
        return checkpoint_name(z + 0.0, "in_custom_jvp")

    own.defjvp(lambda primals, tangents: (own(*primals), tangents[0]))

    @jax.custom_vjp
    def other(z):
        return checkpoint_name(z * 1.0, "in_custom_vjp")

    other.defvjp(lambda z: (other(z), None), lambda _, g: (g,))

    def body(carry, scale):
        carry = checkpoint_name(carry * scale, "in_scan")
        return carry, carry

    y, stacked = jax.lax.scan(body, other(own(y)), jnp.full(3, 1.5, x.dtype))
    return jnp.sum(y), stacked


def test_tags_are_found_in_every_kind_of_inner_function_in_execution_order():
    shapes, tags = tagged_shapes(through_every_kind_of_function, jnp.float32(0.7), X)
    assert list(tags) == ["outside", "in_remat", "in_jit", "in_custom_jvp", "in_custom_vjp"] + [
        f"in_scan[{i}]" for i in range(3)
    ]
    assert all(tag.shape == (1, 3) for tag in tags.values())
    assert shapes[1].shape == (3, 1, 3)


def test_the_interpreted_function_returns_what_the_function_returns():
    w = jnp.float32(0.7)
    found = jax.jit(lambda w, x: capture_jax(through_every_kind_of_function, w, x))(w, X)
    loss, stacked = through_every_kind_of_function(w, X)
    np.testing.assert_array_equal(found.loss, loss)
    np.testing.assert_array_equal(found.aux, stacked)
    np.testing.assert_array_equal(found.activations["in_scan[1]"], stacked[1])
    expected = jax.grad(lambda w: through_every_kind_of_function(w, X)[0])(w)
    np.testing.assert_allclose(found.param_gradients, expected, rtol=1e-6)


def test_a_scans_constants_carry_and_rows_are_distinguished():
    """c = w c + a from the last row to the first, beside a count of the rows: two constants, two carried values."""

    def function(w, x):
        def body(carry, row):
            c, n = carry
            c = checkpoint_name(w * c + row["a"] + 0 * x, "c")
            return (c, n + 1), (c, row["b"])

        rows = {"a": jnp.arange(3.0), "b": jnp.ones((3, 2))}
        (c, n), outputs = jax.lax.scan(body, (x, 0), rows, reverse=True)
        return c, (n, outputs)

    found = capture_jax(function, jnp.float32(2), jnp.float32(5))
    np.testing.assert_array_equal(found.activations["c[2]"], 12)
    jax.tree.map(np.testing.assert_array_equal, (found.loss, found.aux), function(jnp.float32(2), jnp.float32(5)))
    np.testing.assert_array_equal(found.loss, 8 * 5 + 4 * 2 + 2 * 1)


def test_a_tags_gradient_is_the_gradient_of_a_zero_added_there():
    found = capture_jax(through_every_kind_of_function, jnp.float32(0.7), X)
    np.testing.assert_allclose(found.gradients["in_scan[2]"], np.ones((1, 3)))
    np.testing.assert_allclose(found.gradients["in_jit"], np.full((1, 3), 1.5**3), rtol=1e-6)
    sine = np.sin(1.4 * X)
    np.testing.assert_allclose(found.gradients["in_remat"], 1.5**3 * (sine > 0), rtol=1e-6)


def test_a_custom_derivative_without_tags_keeps_its_rule():
    """relu's rule gives 0 at a tie, the derivative of maximum(x, 0) one half."""
    found = capture_jax(
        lambda w, x: (jnp.sum(jax.nn.relu(checkpoint_name(w * x, "before"))), None), jnp.float32(1), jnp.zeros(3)
    )
    np.testing.assert_array_equal(found.gradients["before"], np.zeros(3))
    found = capture_jax(
        lambda w, x: (jnp.sum(jnp.maximum(checkpoint_name(w * x, "before"), 0.0)), None), jnp.float32(1), jnp.zeros(3)
    )
    np.testing.assert_array_equal(found.gradients["before"], np.full(3, 0.5))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.5, -1, 0.25], [1, 0.5, -1], [-0.5, 0.25, 1]]))

    def forward(self, x):
        return self.layer(self.act(self.layer(x)))


def test_torch_names_come_in_execution_order_and_count_repeated_calls():
    module = Twice()
    with capture_torch(module) as passes:
        module(torch.from_numpy(X)).sum().backward()
    assert list(passes[0].activations) == ["layer", "act", "layer #2", "output"]
    assert set(passes[0].gradients) == set(passes[0].activations)


def test_an_operation_in_place_does_not_change_what_was_captured():
    module = Twice()
    with capture_torch(module) as passes:
        module(torch.from_numpy(X))
    with torch.no_grad():
        expected = module.layer(torch.from_numpy(X)).numpy()
    assert (expected < 0).any()
    np.testing.assert_array_equal(passes[0].activations["layer"], expected)


def test_each_forward_pass_is_recorded_apart_and_the_hooks_go_away():
    module = Twice()
    with capture_torch(module) as passes:
        for scale in (1.0, 2.0):
            (scale * module(torch.from_numpy(X))).sum().backward()
    module(torch.from_numpy(X))
    assert len(passes) == 2
    np.testing.assert_array_equal(passes[1].gradients["output"], 2 * passes[0].gradients["output"])


def test_both_frameworks_give_one_activation_and_one_gradient_for_one_function():
    module = Twice().double()
    w, b = (p.detach().numpy() for p in module.parameters())

    def twice(params, x):
        w, b = params
        y = checkpoint_name(x @ w.T + b, "layer")
        y = checkpoint_name(jax.nn.relu(y), "act")
        y = checkpoint_name(y @ w.T + b, "layer")
        return jnp.sum(y**2), None

    with capture_torch(module) as passes:
        module(torch.from_numpy(X).double()).square().sum().backward()
    with jax.enable_x64(True):
        found = capture_jax(twice, (jnp.asarray(w), jnp.asarray(b)), jnp.asarray(X, jnp.float64))
        for name in ("layer", "act", "layer #2"):
            np.testing.assert_allclose(found.activations[name], passes[0].activations[name], rtol=1e-12)
            np.testing.assert_allclose(found.gradients[name], passes[0].gradients[name], rtol=1e-12)
        np.testing.assert_allclose(found.param_gradients[0], module.layer.weight.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("loop", ["while", "cond"])
def test_tags_in_a_loop_of_unknown_length_are_left_alone(loop):
    def function(w, x):
        if loop == "cond":
            return jax.lax.cond(w > 0, lambda y: checkpoint_name(y * 2, "inside"), lambda y: y, x).sum(), None
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: checkpoint_name(c * 2, "inside"), x).sum(), None

    _, tags = tagged_shapes(function, jnp.float32(1), jnp.ones(3))
    assert tags == {}
