"""Modules of Flax inside its transformations, which make new objects of them: every layer is still named."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import parity
from parity.capture import tagged_shapes
from tests.helpers.blocks import LAYERS, LEAVES, D, F, L, V, blocks, compared, layer, layers_named, stacked

RIGHT = 1e-5
WRONG = 1e-6  # Flax' epsilon by default


class NNXBlock(nnx.Module):
    def __init__(self, eps, rngs):
        self.norm = nnx.LayerNorm(D, epsilon=eps, rngs=rngs)
        self.up, self.down = nnx.Linear(D, F, rngs=rngs), nnx.Linear(F, D, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(self.norm(x))))


def over(blocks, x, function):
    for block in blocks:
        x = function(block, x)
    return x


def in_nnx_scan(layers, x):
    return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, layers)


def in_jax_scan(layers, x):
    graph, state = nnx.split(layers)
    return jax.lax.scan(
        lambda x, one: (jax.checkpoint(lambda one, x: nnx.merge(graph, one)(x))(one, x), None), x, state
    )[0]


def stacked_in_the_function(layers, x):
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return jax.lax.scan(lambda x, block: (block(x), None), x, together)[0]


call = lambda block, x: block(x)
STACKED = {"nnx.scan": in_nnx_scan, "lax.scan, checkpoint": in_jax_scan}
LISTED = {  # each function is traced once for layers of one structure, if they are not told apart
    "nnx.jit": lambda layers, x: over(layers, x, nnx.jit(call)),
    "jax.jit": lambda layers, x: over(layers, x, jax.jit(call)),
    "nnx.remat": lambda layers, x: over(layers, x, nnx.remat(call)),
    "nnx.vmap": lambda layers, x: over(layers, x, nnx.vmap(call, in_axes=(None, 0))),
    "stacked in the function": stacked_in_the_function,
}


class NNXBlocks(nnx.Module):
    def __init__(self, how, eps):
        rngs = nnx.Rngs(0)
        make = lambda rngs: NNXBlock(eps, rngs)
        if how in STACKED:
            self.layers = nnx.split_rngs(splits=L)(nnx.vmap(make))(rngs)
        else:
            self.layers = nnx.List(make(rngs) for _ in range(L))
        self.head, self.run = nnx.Linear(D, V, rngs=rngs), {**STACKED, **LISTED}[how]

    def __call__(self, x):
        return self.head(self.run(self.layers, x))


@pytest.mark.parametrize("how", [*STACKED, *LISTED])
def test_the_layers_of_an_nnx_model_are_named_within_transformations(how):
    function, _ = parity.nnx_function(NNXBlocks(how, RIGHT))
    layers = stacked(blocks()) if how in STACKED else {str(i): block for i, block in enumerate(blocks())}
    assert layers_named(function, {"layers": layers, "head": layer("head")}) == LAYERS


@pytest.mark.parametrize(
    ("eps", "found"), [(RIGHT, ("agrees", "", LAYERS)), (WRONG, ("diverges", "layers.0.norm", LAYERS))]
)
def test_an_nnx_scan_is_judged_layer_by_layer(eps, found):
    function, _ = parity.nnx_function(NNXBlocks("nnx.scan", eps))
    assert compared(function, {"layers": stacked(blocks()), "head": layer("head")}) == found


class Base(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(D, V, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


class Derived(Base):
    def __call__(self, x):
        return 2 * super().__call__(x)


def test_a_call_of_the_base_class_has_no_tag_of_its_own():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.derived, self.base = Derived(rngs), Base(rngs)

        def __call__(self, x):
            return self.derived(x) + self.base(x)

    function, params = parity.nnx_function(Model(nnx.Rngs(0)))
    _, tags = tagged_shapes(function, params, jnp.ones((1, D)))
    assert list(tags) == ["derived.linear", "derived", "base.linear", "base"]


class LinenBlock(linen.Module):
    eps: float = RIGHT
    scanned: bool = False

    @linen.compact
    def __call__(self, x, _=None):
        h = linen.LayerNorm(epsilon=self.eps, name="norm")(x)
        x = x + linen.Dense(D, name="down")(jnp.tanh(linen.Dense(F, name="up")(h)))
        return (x, h) if self.scanned else x


class LinenBlocks(linen.Module):
    transform: str
    eps: float = RIGHT
    name_of_scan: str | None = "layers"

    @linen.compact
    def __call__(self, x):
        if self.transform.startswith("scan"):
            kind = linen.remat(LinenBlock) if "remat" in self.transform else LinenBlock
            scan = linen.scan(kind, variable_axes={"params": 0}, split_rngs={"params": True}, length=L)
            x, _ = scan(self.eps, True, name=self.name_of_scan)(x, None)
        else:
            kind = getattr(linen, self.transform)(LinenBlock, **self.options())
            for i in range(L):
                x = kind(self.eps, name=f"layers_{i}")(x)
        return linen.Dense(V, name="head")(x)

    def options(self):
        vmap = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
        return vmap if self.transform == "vmap" else {}


@pytest.mark.parametrize("how", ["scan", "scan, remat", "jit", "remat", "vmap"])
def test_the_layers_of_a_linen_model_are_named_within_transformations(how):
    if how.startswith("scan"):
        params = {"layers": stacked(blocks()), "head": layer("head")}
    else:
        params = {**{f"layers_{i}": block for i, block in enumerate(blocks())}, "head": layer("head")}
    names = layers_named(parity.linen_function(LinenBlocks(how)), params)
    second = {f"layers.1[{i}]" for i in range(L)}  # the scan's y
    assert names == (LAYERS | second if how.startswith("scan") else LAYERS)


def test_the_layers_of_a_linen_scan_without_torchs_name_are_found_by_their_weights():
    function = parity.linen_function(LinenBlocks("scan", name_of_scan="body"))
    found = compared(function, {"body": stacked(blocks()), "head": layer("head")})
    assert found == ("agrees", "", {*LEAVES, "head"})


def test_a_wrong_norm_in_a_linen_scan_is_named_by_its_layer():
    function = parity.linen_function(LinenBlocks("scan", WRONG))
    verdict, first, _ = compared(function, {"layers": stacked(blocks()), "head": layer("head")})
    assert (verdict, first) == ("diverges", "layers.0.norm")
