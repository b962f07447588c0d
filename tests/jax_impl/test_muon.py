from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from optax.contrib import MuonDimensionNumbers

from jax_impl.muon import COEFFICIENTS, EPS, muon, orthogonalize, orthogonalize_tree, shape_scale
from jax_impl.stacks import map_stacks
from twinstep.config import Config

SHAPES = [(24, 24), (16, 40), (40, 16), (1, 8), (8, 1)]  # square, wide, tall, single rows and columns
MU, LR, DECAY = 0.9, 0.05, 0.3
OUT_IN = MuonDimensionNumbers(reduction_axis=1, output_axis=0)  # our weights are (out, in)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def draw(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def quintic(s, steps):
    """What the iteration does to singular values: the polynomial, over and over."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return s


def exact_orthogonalize(x, steps=5):
    """By SciPy's SVD, in float64."""
    u, s, vt = scipy.linalg.svd(x, full_matrices=False)
    return (u * quintic(s / (np.linalg.norm(x) + EPS), steps)) @ vt


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5])
def test_orthogonalize_changes_the_singular_values_alone_and_by_the_quintic(shape, steps):
    x = draw(shape)
    found = orthogonalize(jnp.asarray(x), steps, jnp.float64)
    np.testing.assert_allclose(found, exact_orthogonalize(x, steps), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_singular_values_come_near_one_in_every_type(shape, dtype):
    found = orthogonalize(jnp.asarray(draw(shape)), 5, jnp.dtype(dtype))
    assert found.dtype == dtype
    s = scipy.linalg.svdvals(np.asarray(found, np.float64))
    assert s.max() < 1.25
    assert np.median(s) > 0.65
    u, _, vt = scipy.linalg.svd(draw(shape), full_matrices=False)
    rotated = u.T @ np.asarray(found, np.float64) @ vt.T
    off_diagonal = np.abs(rotated - np.diag(np.diag(rotated))).max()
    assert off_diagonal < {"float32": 1e-5, "bfloat16": 0.1}[dtype]


def test_the_size_of_a_matrix_does_not_matter():
    x = draw((16, 40))
    np.testing.assert_allclose(
        orthogonalize(jnp.asarray(1e4 * x), 5, jnp.float64), orthogonalize(jnp.asarray(x), 5, jnp.float64), atol=1e-7
    )
    assert (orthogonalize(jnp.zeros((3, 5)), 5, jnp.float64) == 0).all()


@pytest.fixture
def stacks(monkeypatch):
    """Shapes and types of the stacks that the orthogonalization gets and gives."""
    seen = []

    def noting(function, tree, mesh=None):
        def noted(x_ZRQ):
            y_ZRQ = function(x_ZRQ)
            seen.append((x_ZRQ.shape, x_ZRQ.dtype, y_ZRQ.dtype))
            return y_ZRQ

        return map_stacks(noted, tree, mesh)

    monkeypatch.setattr("jax_impl.muon.map_stacks", noting)
    return seen


@pytest.mark.parametrize("stacked", [False, True])
def test_matrices_do_not_touch_each_other_stacked_or_not(stacks, stacked):
    tree = {"a": draw((6, 4), 1), "b": {"c": draw((6, 4), 2), "d": draw((4, 6), 3)}}
    found = orthogonalize_tree(jax.tree.map(jnp.asarray, tree), 5, jnp.dtype("float64"), stacked)
    assert [shape for shape, *_ in stacks] == ([(1, 4, 6), (2, 6, 4)] if stacked else [])
    for ours, x in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        np.testing.assert_allclose(ours, shape_scale(x.shape) * exact_orthogonalize(x), atol=1e-12)


def test_what_devices_exchange_is_in_the_type_of_the_orthogonalization(stacks):
    found = orthogonalize_tree([jnp.asarray(draw((6, 4)), jnp.float32)], 5, jnp.dtype("bfloat16"), stacked=True)
    assert stacks == [((1, 6, 4), jnp.bfloat16, jnp.bfloat16)]
    assert found[0].dtype == jnp.float32


@pytest.mark.parametrize(("shape", "scale"), [((8, 2), 2.0), ((2, 8), 1.0), ((5, 5), 1.0)])
def test_tall_matrices_take_larger_steps(shape, scale):
    assert shape_scale(shape) == scale


def reference_steps(p, grads, momentum):
    """The whole update in NumPy."""
    m, path = np.zeros_like(p), []
    for step, g in enumerate(grads):
        mu = momentum(step)
        m = mu * m + (1 - mu) * g
        direction = shape_scale(p.shape) * exact_orthogonalize(mu * m + (1 - mu) * g)
        p = p - LR * (direction + DECAY * p)
        path.append(p)
    return path


def run_steps(optimizer, p, grads):
    params, path = {"w": jnp.asarray(p)}, []
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params["w"]))
    return path


def make_ours(momentum=lambda count: MU, decay=DECAY):
    return muon(lambda count: LR, momentum, lambda count: decay, steps=5, dtype=jnp.dtype("float64"))


@pytest.mark.parametrize("shape", SHAPES)
def test_six_steps_follow_the_formula(shape):
    p, grads = draw(shape, 9), [draw(shape, seed) for seed in range(6)]

    def momentum(step):
        return 0.5 + 0.05 * step

    expected = reference_steps(p, grads, momentum)
    for found, wanted in zip(run_steps(make_ours(momentum), p, grads), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)


def test_update_needs_the_parameters_for_its_decay():
    optimizer = make_ours()
    state = optimizer.init({"w": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="params"):
        optimizer.update({"w": jnp.ones((2, 2))}, state)


# How optax.contrib.muon, the other Muon in reach, differs.


def make_optax(**options):
    options = {"beta": MU, "weight_decay": DECAY, "eps": EPS, "muon_weight_dimension_numbers": {"w": OUT_IN}, **options}
    return optax.contrib.muon(LR, **options)


def test_optax_muon_agrees_at_the_first_step_and_diverges_from_the_second_on():
    p, grads = draw((40, 16), 9), [draw((40, 16), seed) for seed in range(4)]
    ours, theirs = run_steps(make_ours(), p, grads), run_steps(make_optax(), p, grads)
    apart = [np.linalg.norm(a - b) / np.linalg.norm(a - p) for a, b in zip(ours, theirs, strict=True)]
    assert apart[0] < 1e-6
    assert all(distance > 0.02 for distance in apart[1:])


def test_optax_muon_differs_by_the_bias_correction_of_its_momentum_and_by_nothing_else():
    p, grads = draw((40, 16), 9), [draw((40, 16), seed) for seed in range(6)]
    m, corrected = np.zeros_like(p), p
    for t, (g, theirs) in enumerate(zip(grads, run_steps(make_optax(), p, grads), strict=True), start=1):
        m = MU * m + (1 - MU) * g
        # The buffer as if one step older, the gradient as it is: the first step's direction is the gradient's own.
        u = MU * m / (1 - MU ** (t + 1)) + (1 - MU) * g / (1 - MU**t)
        corrected = corrected - LR * (shape_scale(p.shape) * exact_orthogonalize(u) + DECAY * corrected)
        np.testing.assert_allclose(theirs, corrected, atol=1e-6)


def test_optax_muon_takes_weights_as_in_out_by_default():
    p, grads = draw((40, 16), 9), [draw((40, 16), 0)]
    default = make_optax(muon_weight_dimension_numbers=None, weight_decay=0.0)
    (ours,), (theirs,) = run_steps(make_ours(decay=0.0), p, grads), run_steps(default, p, grads)
    np.testing.assert_allclose(p - ours, (40 / 16) ** 0.5 * (p - theirs), rtol=1e-5)


def test_optax_muon_gives_all_else_to_nadam_and_not_to_adamw():
    p, grads = draw((7, 1), 9)[:, 0], [draw((7, 1), seed)[:, 0] for seed in range(4)]
    theirs = run_steps(optax.contrib.muon(LR, adam_learning_rate=LR), p, grads)
    nadam = run_steps(optax.nadamw(LR, weight_decay=0.0), p, grads)
    adamw = run_steps(optax.adamw(LR, weight_decay=0.0), p, grads)
    for found, wanted, other in zip(theirs, nadam, adamw, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        assert np.abs(found - other).max() > 1e-3


def test_our_default_coefficients_are_optaxs_and_its_eps_is_not_ours():
    state = make_optax().init({"w": jnp.ones((2, 2))})
    coefficients = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3,)]
    np.testing.assert_allclose(coefficients[0], COEFFICIENTS, rtol=1e-6)
    small = np.full((2, 3), 1e-8)
    ours = orthogonalize(jnp.asarray(small), 5, jnp.float64)
    theirs, _ = optax.contrib.scale_by_muon().update(
        jnp.asarray(small), optax.contrib.scale_by_muon().init(jnp.asarray(small))
    )
    assert np.linalg.norm(ours - theirs) > 0.1 * np.linalg.norm(theirs)


def test_the_configurations_defaults_are_upstreams():
    o = replace(Config()).optimizer
    assert (o.momentum_start, o.momentum_end, o.momentum_steps, o.newton_schulz_steps) == (0.85, 0.95, 300, 5)
