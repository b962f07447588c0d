"""JAX functions that compute in float32 or bfloat16 inside, against the same formulas in NumPy's float64."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from parity.capture import capture_jax
from parity.jax_internals import user_line
from parity.lines.line import short
from parity.widen_jax import widened

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 8))


def close(actual, expected, tolerance=1e-14):
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def scanned(x):
    def layer(h, w):
        h = jnp.tanh(h * w.astype(jnp.bfloat16))
        return h, h.sum(dtype=jnp.float32)

    h, sums = jax.lax.scan(layer, x[0].astype(jnp.bfloat16), x)
    return h.astype(jnp.float32) + sums.mean()


def scanned_by_hand(x):
    h, sums = x[0], []
    for w in x:
        h = np.tanh(h * w)
        sums.append(h.sum())
    return h + np.mean(sums)


def looped(x):
    count, y = jax.lax.while_loop(
        lambda state: state[1].sum() < 100,
        lambda state: (state[0] + 1, state[1] * 1.1),
        (0, jnp.abs(x).astype(jnp.float16)),
    )
    return y + count


def looped_by_hand(x):
    y, count = np.abs(x), 0
    while y.sum() < 100:
        y, count = y * 1.1, count + 1
    return y + count


def rotary(x):
    frequencies = 10000.0 ** (-jnp.arange(4, dtype=jnp.float32) / 4)
    angles = jnp.outer(jnp.arange(5, dtype=jnp.float32), frequencies)
    rotated = (x[:, :4] + 1j * x[:, 4:]).astype(jnp.complex64) * jnp.exp(1j * angles)
    return jnp.concatenate([rotated.real, rotated.imag], -1)


def rotary_by_hand(x):
    rotated = (x[:, :4] + 1j * x[:, 4:]) * np.exp(1j * np.outer(np.arange(5), 10000.0 ** (-np.arange(4) / 4)))
    return np.concatenate([rotated.real, rotated.imag], -1)


f32 = lambda x: x.astype(jnp.float32)
product = lambda x, **kwargs: jnp.matmul(x.astype(jnp.bfloat16), x.astype(jnp.bfloat16).T, **kwargs)

FUNCTIONS = {
    "cast": (lambda x: f32(x) / 3, lambda x: x / 3),
    "half": (lambda x: jnp.exp(x.astype(jnp.float16)), np.exp),
    "decimal": (lambda x: f32(x) * 0.1 + 1e-5, lambda x: x * 0.1 + 1e-5),
    "scalar": (lambda x: f32(x) / math.sqrt(7) * jnp.float32(1 / 3), lambda x: x / math.sqrt(7) * (1 / 3)),
    "full": (lambda x: f32(x) + jnp.full((8,), math.pi, jnp.float32), lambda x: x + math.pi),
    "table": (lambda x: f32(x[0, :3]) * jnp.array([0.1, 1 / 3, 2], jnp.float32) + jnp.asarray(np.ones(3) / 7, "half"),
              lambda x: x[0, :3] * [0.1, 1 / 3, 2] + 1 / 7),
    "dtype": (lambda x: x.sum(-1, dtype=jnp.float32), lambda x: x.sum(-1)),
    "product": (lambda x: product(x, preferred_element_type=jnp.float32), lambda x: x @ x.T),
    "algorithm": (lambda x: product(x, precision="BF16_BF16_F32"), lambda x: x @ x.T),
    "reduce_precision": (lambda x: jax.lax.reduce_precision(x, 8, 7), lambda x: x),
    "softmax": (lambda x: jax.nn.softmax(f32(x)), softmax),
    "logsumexp": (lambda x: jax.nn.logsumexp(f32(x), -1), lambda x: np.log(np.exp(x).sum(-1))),
    "silu": (lambda x: jax.nn.silu(f32(x)), lambda x: x * sigmoid(x)),
    "where": (lambda x: jnp.where(f32(x) > 0, f32(x), 0.3), lambda x: np.where(x > 0, x, 0.3)),
    "convolution": (lambda x: jnp.convolve(f32(x)[0], f32(x)[1]), lambda x: np.convolve(x[0], x[1])),
    "scatter": (lambda x: jnp.zeros(3, jnp.float32).at[jnp.array([0, 2, 2])].add(f32(x)[0, :3]),
                lambda x: np.array([x[0, 0], 0, x[0, 1] + x[0, 2]])),
    "reduce": (lambda x: jax.lax.reduce(f32(x), jnp.float32(0), lambda a, b: jnp.hypot(a, b), (1,)),
               lambda x: np.sqrt((x * x).sum(1))),
    "pool": (lambda x: nn.avg_pool(f32(x)[None], (5,))[0, 0], lambda x: x.mean(0)),
    "cumulative": (lambda x: jnp.cumsum(f32(x)) + jax.lax.associative_scan(jnp.add, f32(x).ravel()),
                   lambda x: 2 * np.cumsum(x)),
    "sort": (lambda x: jnp.sort(f32(x)) + jax.lax.top_k(f32(x), 8)[0], lambda x: np.sort(x) + np.sort(x)[:, ::-1]),
    "solve": (lambda x: jnp.linalg.solve(f32(x)[:, :5], f32(x)[:, 5]), lambda x: np.linalg.solve(x[:, :5], x[:, 5])),
    "jit": (jax.jit(lambda x: f32(x) * 0.7), lambda x: x * 0.7),
    "remat": (jax.checkpoint(lambda x: jnp.sin(f32(x) * 0.7)), lambda x: np.sin(x * 0.7)),
    "cond": (lambda x: jax.lax.cond(x[0, 0] > 5, lambda y: y, lambda y: y * 0.7, f32(x)), lambda x: x * 0.7),
    "vmap": (jax.vmap(lambda x: f32(x) @ f32(x)), lambda x: (x * x).sum(-1)),
    "grad": (jax.grad(lambda x: jnp.sin(f32(x)).sum()), np.cos),
    "scan": (scanned, scanned_by_hand),
    "while": (looped, looped_by_hand),
    "rotary": (rotary, rotary_by_hand),
    "integers": (lambda x: jnp.arange(8) / jnp.float32(3) + f32(x), lambda x: np.arange(8) / 3 + x),
}  # fmt: skip


def narrow_parts(function, *args) -> list[str]:
    narrow: list[str] = []
    jax.eval_shape(widened(function, narrow=narrow), *args)
    return narrow


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_every_way_to_be_narrow_is_widened(kind, jit):
    function, expected = FUNCTIONS[kind]
    wide = widened(function)
    close((jax.jit(wide) if jit else wide)(X), expected(X), 1e-13 if kind in ("solve", "scan", "while") else 1e-14)
    assert narrow_parts(function, X) == []
    if kind not in ("reduce_precision", "sort"):
        assert np.abs(function(X) - expected(X)).max() > 1e-11  # as it is written


@pytest.mark.parametrize("kind", ["softmax", "remat", "cond", "scan", "silu", "logsumexp", "rotary", "product", "vmap"])
def test_gradients_are_those_of_the_formula(kind):
    function, expected = FUNCTIONS[kind]
    weights = RNG.normal(size=np.shape(expected(X)))
    gradient = jax.jit(jax.grad(lambda x: (widened(function)(x) * weights).sum()))(X)
    assert gradient.dtype == jnp.float64
    direction = RNG.normal(size=X.shape)
    f = lambda t: (expected(X + t * direction) * weights).sum()
    h = 1e-3
    slope = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-8)


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(dtype=jnp.float32, epsilon=1e-6)(x)
        x = nn.Dense(8, dtype=jnp.bfloat16)(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=jnp.float32)(x)


def test_flax_norms_and_their_statistics():
    model = Norms()
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), model.init(jax.random.key(0), X))
    y, new = widened(lambda v, x: model.apply(v, x, mutable=["batch_stats"]))(variables, X)
    x = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-6)
    x = x @ np.asarray(variables["params"]["Dense_0"]["kernel"])
    close(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 1e-13)
    close(new["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * x.mean(0))
    close(new["batch_stats"]["BatchNorm_0"]["var"], 0.9 + 0.1 * x.var(0))


@jax.custom_vjp
def scaled(x, n):
    return f32(x) * 0.3


def scaled_bwd(x, g):
    assert g.dtype == jnp.float32, "the rule is called with the dtypes that it was written for"
    return f32(x).astype(x.dtype) * g * 0.7, None


scaled.defvjp(lambda x, n: (scaled(x, n), x), scaled_bwd)


@jax.custom_jvp
def bent(x, n):
    return f32(x) * 0.3, n + 1


@bent.defjvp
def _(primals, tangents):
    y, n = bent(*primals)
    return (y, n), (f32(tangents[0]) * 0.7, np.zeros((), jax.dtypes.float0))


@pytest.mark.parametrize("inside", ["plain", "remat", "scan", "jit"])
@pytest.mark.parametrize("function", [scaled, lambda x, n: bent(x, n)[0]], ids=["vjp", "jvp"])
def test_a_custom_derivative_stays_and_is_widened(function, inside):
    def outer(x):
        call = lambda x: function(x, 3)
        if inside == "scan":
            return jax.lax.scan(lambda c, x: (c, call(x)), 0, x)[1]
        return {"plain": call, "remat": jax.checkpoint(call), "jit": jax.jit(call)}[inside](x)

    close(widened(outer)(X), 0.3 * X)
    gradient = jax.jit(jax.grad(lambda x: jnp.sin(widened(outer)(x)).sum()))(X)
    close(gradient, np.cos(0.3 * X) * 0.7 * (X if function is scaled else 1))


def test_relu_has_its_own_gradient_at_zero():
    close(jax.grad(lambda x: widened(lambda x: jax.nn.relu(f32(x)))(x).sum())(np.zeros(3)), np.zeros(3))


def test_random_numbers_are_drawn_as_written():
    def function(x):
        keys = jax.random.split(jax.random.key(0), 4)
        mask = jax.random.bernoulli(keys[0], jnp.float32(0.9), x.shape)
        drawn = jax.random.normal(keys[1], x.shape, jnp.float32), jax.random.uniform(keys[2], x.shape, jnp.bfloat16)
        chosen = jax.random.categorical(keys[3], f32(x))
        return jnp.where(mask, f32(x) / 0.9, 0), drawn, chosen

    (y, drawn, chosen), (as_written, numbers, choices) = widened(function)(X), function(X)
    close(y, np.where(np.asarray(as_written) != 0, X / 0.9, 0))
    for wide, narrow in zip(drawn, numbers, strict=True):
        close(wide, narrow.astype(jnp.float64), 0)
    np.testing.assert_array_equal(chosen, choices)


def test_bits_are_those_of_the_dtype_as_written():
    bits = widened(lambda x: jax.lax.bitcast_convert_type(f32(x), jnp.int32))(X)
    np.testing.assert_array_equal(bits, X.astype(np.float32).view(np.int32))


def tagged(params, x):
    x = checkpoint_name(x.astype(jnp.float32) * params["w"], "in")

    def layer(h, w):
        h = checkpoint_name(jnp.tanh(h * w.astype(jnp.bfloat16)), "layer")
        return h, None

    h, _ = jax.lax.scan(layer, x.astype(jnp.bfloat16), params["layers"])
    return checkpoint_name(h.astype(jnp.float32).sum(), "sum"), h


def test_tags_are_seen_with_values_and_gradients():
    params = {"w": X[0], "layers": X[1:3]}
    found = jax.jit(lambda p, x: capture_jax(widened(tagged), p, x))(params, X[3])
    h = [X[3] * X[0]]
    for w in X[1:3]:
        h.append(np.tanh(h[-1] * w))
    assert sorted(found.activations) == ["in", "layer[0]", "layer[1]", "sum"]
    for name, expected in zip(("in", "layer[0]", "layer[1]"), h, strict=True):
        close(found.activations[name], expected)
    close(found.activations["sum"], h[2].sum())
    slope = (1 - h[2] ** 2) * X[2]
    close(found.gradients["layer[0]"], slope)
    close(found.param_gradients["w"], slope * (1 - h[1] ** 2) * X[1] * X[3])


def test_lines_that_cast_are_named_once():
    casts = []
    jax.jit(widened(tagged, casts))({"w": X[0], "layers": X[1:3]}, X[3])
    first = tagged.__code__.co_firstlineno
    lines = [(1, "tagged"), (7, "tagged"), (4, "tagged.<locals>.layer"), (8, "tagged")]
    assert sorted(map(str, casts)) == sorted(f"{short(__file__)}:{first + n} {name}" for n, name in lines)


def test_equations_keep_their_lines():
    eqns = jax.make_jaxpr(widened(lambda x: jnp.tanh(f32(x))))(X).jaxpr.eqns
    (line,) = (user_line(eqn) for eqn in eqns if eqn.primitive.name == "tanh")
    assert line.file == __file__


def test_what_cannot_be_widened_is_named_and_computed_as_written():
    def function(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, jnp.float32), f32(x)) * 0.1

    close(widened(function)(X), np.sin(X.astype(np.float32)).astype(float) * 0.1)
    (part,) = narrow_parts(function, X)
    assert part == f"pure_callback at {short(__file__)}:{function.__code__.co_firstlineno + 1} {function.__qualname__}"


def test_a_function_jitted_before_still_has_its_constants():
    inner = jax.jit(lambda x: x * math.pi)
    inner(jnp.ones((5, 8), jnp.float32))
    close(widened(lambda x: inner(f32(x)))(X), X * math.pi)


def test_keywords_trees_and_vmap():
    function = lambda tree, *, y: {"z": (f32(tree["x"]) * f32(y), None)}
    close(widened(function)({"x": X}, y=X)["z"][0], X * X)
    close(jax.vmap(widened(lambda x: f32(x) @ f32(x)))(X), (X * X).sum(-1))
