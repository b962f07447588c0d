"""To the line: which line of the port is wrong, and which of torch's computes the same."""

import importlib.util
import inspect
import linecache
import math
from unittest import mock

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn
from torch.nn import functional

import parity
from parity.lines.line import short

X = np.random.default_rng(0).standard_normal((4, 6, 8))


class Mlp(nn.Module):
    """Normed, widened, activated, narrowed, added."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        normed = self.norm(x)
        wide = self.up(normed)
        active = functional.gelu(wide)
        return x + self.down(active)


def norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * weight + bias


def mlp(params, x, *, norm=norm, gelu=lambda x: jax.nn.gelu(x, approximate=False), gate=lambda x: x):
    normed = norm(x, params["norm.weight"], params["norm.bias"])
    wide = normed @ params["up.weight"].T + params["up.bias"]
    active = gelu(wide)
    return x + gate(active) @ params["down.weight"].T + params["down.bias"]


def params_of(module):
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def lines_of(port, **options):
    module = Mlp()
    return parity.compare(module, port, params_of(module), [X], **options)


def text(line) -> str:
    """The source that a line names."""
    assert line is not None
    assert line.first == line.last, line
    return linecache.getline(line.file, line.first).strip()


def test_a_right_port_has_no_wrong_lines():
    result = lines_of(mlp)
    assert result.verdict == "agrees"
    assert result.lines is None


def test_an_activation_which_is_no_module_is_named_on_both_sides():
    lines = lines_of(lambda params, x: mlp(params, x, gelu=jax.nn.gelu)).lines
    assert text(lines.torch) == "active = functional.gelu(wide)"
    assert text(lines.jax) in ("active = gelu(wide)", inspect.getsource(mlp).splitlines()[3].strip())
    assert lines.jax.exact
    assert lines.torch.function == "forward"


def test_an_epsilon_within_a_norm():
    other = lambda *args: norm(*args, eps=1e-3)
    result = lines_of(lambda params, x: mlp(params, x, norm=other))
    assert text(result.lines.jax) == "return centred * jax.lax.rsqrt(variance + eps) * weight + bias"
    assert text(result.lines.torch) == "normed = self.norm(x)"
    assert f"JAX {short(__file__)}:{result.lines.jax.first} norm" in result.sentence


def test_a_stopped_gradient_is_the_line_through_which_none_goes():
    stopped = lambda params, x: mlp(params, x, gate=jax.lax.stop_gradient)
    result = lines_of(stopped)
    assert result.first_divergence.stage == "gradients"
    assert text(result.lines.torch) == "return x + self.down(active)"
    assert text(result.lines.jax) in (
        'return x + gate(active) @ params["down.weight"].T + params["down.bias"]',
        "active = gelu(wide)",
    )


@jax.custom_jvp
def squared(x):
    return x * x


@squared.defjvp
def _(primals, tangents):
    return squared(primals[0]), 3 * primals[0] * tangents[0]


class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        y = self.linear(x)
        return y * y


def test_a_wrong_derivative_of_the_ports_own():
    module = Squared()

    def port(params, x):
        return squared(x @ params["linear.weight"].T + params["linear.bias"])

    result = parity.compare(module, port, params_of(module), [X])
    assert result.first_divergence.stage == "gradients"
    assert text(result.lines.torch) == "return y * y"
    assert text(result.lines.jax) == "return squared(primals[0]), 3 * primals[0] * tangents[0]"


def test_a_wrong_loss_is_a_line_of_the_losses():
    def ours(output, x):
        return (output**2).mean()

    def theirs(output, x):
        return (output**2).sum() / math.prod(x.shape[:-1])

    result = lines_of(mlp, losses=(ours, theirs))
    assert result.first_divergence.stage == "loss"
    assert text(result.lines.torch) == "return (output**2).mean()"
    assert text(result.lines.jax) == "return (output**2).sum() / math.prod(x.shape[:-1])"


@pytest.mark.parametrize(
    ("transformation", "operation"),
    [
        (optax.adamw(1e-2, eps=1e-5, weight_decay=0.1), "eps"),
        (optax.adamw(1e-2, weight_decay=0.01), "weight_decay"),
        (optax.adamw(1e-2, b2=0.99, weight_decay=0.1), "beta2"),
    ],
)
def test_of_an_optimizer_the_lines_are_those_of_torchs_and_of_optaxs(transformation, operation):
    optimizers = (lambda ps: torch.optim.AdamW(ps, 1e-2, weight_decay=0.1), transformation)
    result = lines_of(mlp, optimizers=optimizers)
    assert result.first_divergence.stage == "update"
    assert result.lines.torch.file.endswith("torch/optim/adam.py")
    assert operation in "".join(
        linecache.getline(result.lines.torch.file, n)
        for n in range(result.lines.torch.first - 1, result.lines.torch.last + 2)
    )
    assert "optax" in result.lines.jax.file


def test_a_right_optimizer_has_no_wrong_lines():
    optimizers = (lambda ps: torch.optim.AdamW(ps, 1e-2, weight_decay=0.1), optax.adamw(1e-2, weight_decay=0.1))
    result = lines_of(mlp, optimizers=optimizers)
    assert result.verdict == "agrees"
    assert result.lines is None


def test_lines_are_those_before_any_update():
    optimizers = (lambda ps: torch.optim.SGD(ps, 0.1), optax.sgd(0.1))
    other = lambda params, x: mlp(params, x, gelu=jax.nn.relu)
    assert str(lines_of(other, optimizers=optimizers).lines) == str(lines_of(other).lines)


def test_a_search_that_fails_costs_no_verdict():
    with mock.patch("parity.pair.lines.record_jax", side_effect=NotImplementedError("no such primitive")):
        result = lines_of(lambda params, x: mlp(params, x, gelu=jax.nn.relu))
    assert result.verdict == "diverges"
    assert result.lines is None
    assert any("could not be looked for: NotImplementedError: no such primitive" in note for note in result.notes)


def test_in_float32_no_line_is_searched():
    module = Mlp()
    wrong = lambda params, x: mlp(params, x, gelu=jax.nn.relu)
    result = parity.compare(module, wrong, params_of(module), [X.astype(np.float32)], dtype="float32")
    assert result.verdict == "diverges"
    assert result.lines is None


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.norm(x + mixed)


class Linen(flax.linen.Module):
    """Of Linen's own layers, whose norm has another epsilon than torch's."""

    @flax.linen.compact
    def __call__(self, x):
        mixed = flax.linen.MultiHeadDotProductAttention(num_heads=2, name="attention")(x, x)
        return flax.linen.LayerNorm(name="norm")(x + mixed)


def linen_params(state):
    def heads(x, bias=False):
        return x.reshape(2, 4) if bias else x.T.reshape(8, 2, 4)

    state = {name: x.numpy() for name, x in state.items()}
    weights, biases = np.split(state["attention.in_proj_weight"], 3), np.split(state["attention.in_proj_bias"], 3)
    attention = {
        name: {"kernel": heads(w), "bias": heads(b, bias=True)}
        for name, w, b in zip(("query", "key", "value"), weights, biases, strict=True)
    }
    out = {
        "kernel": state["attention.out_proj.weight"].T.reshape(2, 4, 8),
        "bias": state["attention.out_proj.bias"],
    }
    norm = {"scale": state["norm.weight"], "bias": state["norm.bias"]}
    return {"params": {"attention": {**attention, "out": out}, "norm": norm}}


def test_layers_of_linen_as_they_are_the_difference_is_the_norms():
    module = Attention()
    result = parity.compare(module, Linen().apply, None, [X], convert=linen_params)
    assert result.verdict == "diverges"
    assert text(result.lines.torch) == "return self.norm(x + mixed)"
    assert text(result.lines.jax) == 'return flax.linen.LayerNorm(name="norm")(x + mixed)'


@pytest.mark.skipif(importlib.util.find_spec("equinox") is None, reason="Equinox is not installed")
def test_an_mlp_of_equinox_as_it_is_the_difference_is_the_gelu():
    import equinox

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))
    model = equinox.nn.MLP(8, 3, 16, 1, activation=jax.nn.gelu, key=jax.random.key(0))
    state = params_of(module)
    where = lambda m: [part for layer in m.layers for part in (layer.weight, layer.bias)]
    model = equinox.tree_at(where, model, [state[n] for n in ("0.weight", "0.bias", "2.weight", "2.bias")])
    result = parity.compare(module, lambda m, x: jax.vmap(m)(x), model, [X[0]])
    assert result.verdict == "diverges"
    assert "gelu" in text(result.lines.torch)  # torch's own: no code of the user's calls it
    assert result.lines.jax.file.endswith("equinox/nn/_mlp.py") or result.lines.jax.function.endswith("<lambda>")
