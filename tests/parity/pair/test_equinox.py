"""An Equinox model, written for one example and vmapped: its layers are named within transformations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import parity
from tests.helpers.blocks import LAYERS, D, F, L, V, blocks, compared, layer, layers_named, stacked


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, eps, key):
        self.norm = eqx.nn.LayerNorm(D, eps)
        self.up, self.down = eqx.nn.Linear(D, F, key=key), eqx.nn.Linear(F, D, key=key)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(self.norm(x))))


def in_a_scan(block, x):
    arrays, rest = eqx.partition(block, eqx.is_array)
    step = lambda x, one: (eqx.combine(one, rest)(x), None)
    return jax.lax.scan(step, x, arrays)[0]


def one_by_one(function, blocks, x):
    for block in blocks:
        x = function(block, x)
    return x


RUNS = {
    "scan": in_a_scan,
    "stacked in the function": lambda blocks, x: in_a_scan(jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks), x),
    "filter_jit": lambda blocks, x: one_by_one(eqx.filter_jit(lambda block, x: block(x)), blocks, x),
    "filter_checkpoint": lambda blocks, x: one_by_one(lambda block, x: eqx.filter_checkpoint(block)(x), blocks, x),
}


class Model(eqx.Module):
    layers: Block | list
    head: eqx.nn.Linear
    how: str = eqx.field(static=True)

    def __call__(self, x):
        return self.head(RUNS[self.how](self.layers, x))


def filled(module, leaves):
    """The module with these weights, torch's; Equinox' have torch's names and layout."""
    names = [name for name in ("norm", "up", "down") if hasattr(module, name)]
    if names:
        return eqx.tree_at(
            lambda m: [getattr(m, n) for n in names], module, [filled(getattr(module, n), leaves[n]) for n in names]
        )
    return eqx.tree_at(lambda m: (m.weight, m.bias), module, (leaves["weight"], leaves["bias"]))


def model(how, eps=1e-5):
    key = jax.random.key(0)
    right = lambda leaves: {**leaves, "weight": leaves["weight"].T}  # torch's own layout; of a vector, itself
    held = [
        filled(Block(eps, key), {n: right(w) for n, w in b.items()}) for b in blocks(kernel="weight", scale="weight")
    ]
    head = filled(eqx.nn.Linear(D, V, key=key), right(layer("head", kernel="weight")))
    return Model(stacked(held) if how == "scan" else held, head, how)


def function_of(model):
    return parity.equinox_function(model, lambda model, x: jax.vmap(model)(x))


@pytest.mark.parametrize("how", RUNS)
def test_the_layers_are_named_within_transformations(how):
    assert layers_named(*function_of(model(how))) == LAYERS


@pytest.mark.parametrize(("eps", "verdict", "first"), [(1e-5, "agrees", ""), (1e-6, "diverges", "layers.0.norm")])
def test_an_equinox_model_in_a_scan_is_judged_layer_by_layer(eps, verdict, first):
    assert compared(*function_of(model("scan", eps))) == (verdict, first, LAYERS)


def test_a_model_is_called_itself_where_no_call_is_given():
    function, params = parity.equinox_function(model("filter_jit"))
    assert function(params, jnp.ones(D)).shape == (V,)
    assert len(params.layers) == L
