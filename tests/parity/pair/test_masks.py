"""Dropout: torch's masks replayed in ports that draw their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from torch import nn

import parity
from parity import compare

X = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.d, self.b, self.e = nn.Linear(8, 6), nn.Dropout(0.4), nn.Linear(6, 5), nn.Dropout(0.2)

    def forward(self, x):
        return self.e(self.b(self.d(torch.tanh(self.a(x)))))


def params(module, kernel="kernel"):
    held = {name: x.detach().numpy() for name, x in module.named_parameters()}
    return {name: {kernel: held[f"{name}.weight"].T, "bias": held[f"{name}.bias"]} for name in ("a", "b")}


def dropped(key, x, rate):
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def plain(rates=(0.4, 0.2)):
    def function(p, x):
        keys = jax.random.split(jax.random.key(0))
        h = dropped(keys[0], jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"]), rates[0])
        y = h @ p["b"]["kernel"] + p["b"]["bias"]
        return dropped(keys[1], y, rates[1]) if rates[1] else y

    return function


class NNXDropping(nnx.Module):
    def __init__(self, rate):
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 5, rngs=rngs)
        self.d, self.e = nnx.Dropout(rate, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.e(self.b(self.d(jnp.tanh(self.a(x)))))


class LinenDropping(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.Dropout(0.4, deterministic=False, name="d")(jnp.tanh(linen.Dense(6, name="a")(x)))
        return linen.Dropout(0.2, deterministic=False, name="e")(linen.Dense(5, name="b")(h))


def noted(result, words):
    return any(words in note for note in result.notes)


@pytest.mark.parametrize(
    "function",
    [
        plain(),
        pytest.param(parity.nnx_function(NNXDropping(0.4))[0], marks=pytest.mark.slow),
        pytest.param(
            parity.linen_function(LinenDropping(), rngs={"dropout": jax.random.key(1)}), marks=pytest.mark.slow
        ),
    ],
    ids=["plain JAX", "NNX", "Linen"],
)
def test_a_right_port_with_dropout_agrees_by_torchs_masks(function):
    module, before = Dropping(), torch.random.get_rng_state()
    result = compare(module, function, params(module), [X])
    assert result.verdict == "agrees", result.sentence
    assert noted(result, "torch's 2 masks of dropout were replayed in the port")
    assert not noted(result, "no port can match")
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_rate_is_a_divergence_at_its_mask():
    module = Dropping()
    first = compare(module, plain((0.5, 0.2)), params(module), [X]).first_divergence
    assert (first.stage, first.tensor) == ("activations", "dropout 0")
    assert first.note == "it keeps 0.6 of the numbers in torch, 0.5 in JAX"


def test_masks_that_do_not_fit_are_named_and_not_replayed():
    module = Dropping()
    result = compare(module, plain((0.4, 0.0)), params(module), [X])
    assert result.verdict == "diverges"
    assert noted(result, "could not be replayed: torch draws 2 and the port 1")
    assert noted(result, "no port can match: d, e")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 3, 4, 4)])
def test_a_mask_is_given_in_the_ports_layout_where_that_is_clear(shape):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()) * 2)

        def forward(self, x):
            return nn.functional.dropout(x * self.scale, 0.5, self.training)

    function = lambda p, x: dropped(jax.random.key(0), x * p["scale"], 0.5)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = compare(Scaled(), function, {"scale": np.float32(2)}, [x], jax_inputs=[x.transpose(0, 2, 3, 1)])
    assert result.verdict == ("agrees" if len(set(shape)) == 4 else "diverges"), result.sentence


@pytest.mark.slow
def test_a_run_replays_the_masks_of_each_step():
    module = Dropping()
    optimizers = (lambda ps: torch.optim.SGD(ps, 0.1), optax.sgd(0.1))
    sizes = (3, 2, 3)
    batches = (lambda step: [X[: sizes[step]]],) * 2
    losses = (lambda output, x: output.square().mean(), lambda output, x: (output**2).mean())
    options = {"optimizers": optimizers, "batches": batches, "losses": losses}
    result = compare(module, plain(), params(module), [X], **options)
    assert result.verdict == "agrees", result.sentence
    assert result.stages["trajectory"].compared == 3 * 5
