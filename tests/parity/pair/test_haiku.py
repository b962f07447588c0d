"""A Haiku function: its modules' layers are named, in `layer_stack` by their weights."""

import haiku as hk
import jax.numpy as jnp
import pytest

import parity
from tests.helpers.blocks import LAYERS, LEAVES, D, F, L, V, blocks, compared, layer, layers_named, stacked

NAMES = {"kernel": "w", "bias": "b", "shift": "offset"}


class Block(hk.Module):
    def __init__(self, eps, name):
        super().__init__(name)
        self.eps, self.up = eps, hk.Linear(F, name="up")

    def __call__(self, x):
        h = hk.LayerNorm(-1, True, True, eps=self.eps, name="norm")(x)
        return x + hk.Linear(D, name="down")(jnp.tanh(self.up(h)))


def function_of(stack, eps=1e-5):
    def model(x):
        if stack:
            x = hk.layer_stack(L, name="body")(lambda x: Block(eps, "block")(x))(x)
        else:
            for i in range(L):
                x = hk.remat(Block(eps, f"layers_{i}"))(x)
        return hk.Linear(V, name="head")(x)

    return parity.haiku_function(hk.without_apply_rng(hk.transform(model)).apply)


def params_of(stack):
    modules = {"body/block": stacked(blocks(**NAMES))} if stack else {}
    modules = modules or {f"layers_{i}": block for i, block in enumerate(blocks(**NAMES))}
    inner = {"up": "~/up"}  # made in __init__
    params = {f"{name}/{inner.get(part, part)}": w for name, block in modules.items() for part, w in block.items()}
    return {**params, "head": layer("head", **NAMES)}


def test_the_modules_are_named_by_their_paths():
    found = {name.replace(".~", "") for name in layers_named(function_of(False), params_of(False))}
    assert found == LAYERS


@pytest.mark.parametrize(("eps", "verdict", "first"), [(1e-5, "agrees", ""), (1e-6, "diverges", "layers.0.norm")])
def test_a_layer_stack_is_judged_layer_by_layer(eps, verdict, first):
    assert compared(function_of(True, eps), params_of(True)) == (verdict, first, {*LEAVES, "head"})
