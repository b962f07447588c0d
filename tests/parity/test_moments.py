"""Moments are found in whatever layout an optimizer keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from parity.moments import find_layout, kind_of

SHAPES = {"a": (3, 2), "b": (3, 2), "wide": (2, 5), "square": (4, 4), "bias": (4,), "one": (1,)}
BETAS = 0.8, 0.95


def gradients(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    first = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: np.stack([g, -random.uniform(0.5, 2, g.shape) * g]) for name, g in first.items()}


def moments_of(g: dict) -> tuple[dict, dict]:
    return tuple({n: (1 - beta) * x**power for n, x in g.items()} for power, beta in enumerate(BETAS, start=1))


def layout_of(state_of, probes=()):
    """state_of: the state from first and second moments by name, of zeros before and of one update after."""
    both = gradients()
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    after = [state_of(*moments_of({n: g[at] for n, g in both.items()}), 1) for at in (0, 1)]
    return find_layout(state_of(zeros, zeros, 0), after, both, dict.fromkeys(probes, "")), after[0]


def found(layout, state) -> dict[str, np.ndarray]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return {place.name: place.of(leaves) for place in layout.moments}


def expected(first: str = "first_moment") -> dict[str, np.ndarray]:
    m, v = moments_of({name: g[0] for name, g in gradients().items()})
    named = {f"{first}/{name}": x for name, x in m.items()}
    return named if first == "momentum" else named | {f"second_moment/{name}": x for name, x in v.items()}


LAYOUTS = {
    "optax": lambda m, v, t: (optax.ScaleByAdamState(jnp.int32(t), m, v), optax.ScaleByScheduleState(jnp.int32(t))),
    "lists": lambda m, v, t: [list(m.values()), list(v.values()), float(t)],
    "one dict": lambda m, v, t: {n: {"x": v[n], "y": m[n]} for n in m},
    "transposed": lambda m, v, t: (jax.tree.map(np.transpose, m), jax.tree.map(np.transpose, v)),
    "stacked": lambda m, v, t: [
        *(np.stack([x["b"], x["a"]]) for x in (m, v)),
        *(np.stack([x[n].T]) for x in (m, v) for n in ("wide", "square")),
        *(x[n] for x in (m, v) for n in ("bias", "one")),
    ],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_moments_are_found_by_what_they_are(name):
    layout, state = layout_of(LAYOUTS[name])
    assert layout.unknown == {}
    assert len(layout.counts) == {"optax": 2, "lists": 1}.get(name, 0)
    arrays = found(layout, state)
    assert arrays.keys() == expected().keys()
    for moment, array in expected().items():
        np.testing.assert_array_equal(arrays[moment], array, err_msg=moment)


def test_a_first_moment_without_a_second_is_a_momentum():
    layout, state = layout_of(lambda m, v, t: (m, t))
    assert found(layout, state).keys() == expected("momentum").keys()


def test_a_moment_that_is_found_twice_or_not_at_all_is_unknown_by_its_path():
    layout, _ = layout_of(lambda m, v, t: {"m": {**m, "square": np.tril(m["square"]), "copy": m["a"]}})
    assert sorted(layout.unknown.values()) == ["['m']['a']", "['m']['copy']", "['m']['square']"]
    assert {place.name for place in layout.moments} == {f"momentum/{n}" for n in ("b", "wide", "bias", "one")}


def test_a_group_names_its_counts_and_what_stays_as_it_is_need_not_be_known():
    state = lambda m, v, t: optax.PartitionState({"head": (jnp.int32(3 * t), jnp.float32(0.1), jnp.float32(t / 2))})
    layout, _ = layout_of(state)
    assert layout.counts == {0: "count/head"}
    assert list(layout.unknown) == [2]


def test_probes_are_left_out():
    layout, _ = layout_of(lambda m, v, t: (m, m), probes=range(len(SHAPES)))
    assert layout.unknown == {}
    assert {place.leaf for place in layout.moments} == set(range(len(SHAPES), 2 * len(SHAPES)))


def test_a_moment_may_be_rounded_but_not_be_that_of_another_gradient():
    x = np.random.default_rng(1).standard_normal((2, 30))
    assert kind_of(x.astype(jnp.bfloat16), x) == "1"
    assert kind_of(x**2 / 7, x) == "2"
    assert kind_of(np.random.default_rng(2).standard_normal((2, 30)), x) == ""
    assert kind_of(-x, x) == ""
