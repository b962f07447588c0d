"""Three pairs that are not ours, each right once and wrong once."""

import re
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name
from torch import nn

import parity
from jax_impl.tree import unflatten
from parity import Rule
from twinstep.errors import UserError


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Channels(nn.Module):
    """LayerNorm over the channels of an image (B, C, H, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def torch_cnn() -> nn.Module:
    torch.manual_seed(0)
    layers = [("conv", nn.Conv2d(3, 6, 3)), ("channels", Channels(6)), ("act", nn.GELU()), ("flat", nn.Flatten()),
              ("head", nn.Linear(6 * 4 * 4, 5))]  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


class LinenCNN(linen.Module):
    eps: float = 1e-5
    approximate: bool = False

    @linen.compact
    def __call__(self, x_BHWC):
        x_BHWC = linen.Conv(6, (3, 3), padding="VALID", name="conv")(x_BHWC)
        x_BHWC = linen.LayerNorm(epsilon=self.eps, name="norm")(x_BHWC)
        x_BHWC = checkpoint_name(linen.gelu(x_BHWC, approximate=self.approximate), "act")
        x_BF = x_BHWC.transpose(0, 3, 1, 2).reshape(x_BHWC.shape[0], -1)  # torch flattens channels first
        return linen.Dense(5, name="head")(x_BF)


CNN_WEIGHTS = (
    Rule(r"conv\.weight", "conv.kernel", (2, 3, 1, 0)),
    Rule(r"channels\.norm\.weight", "norm.scale"),
    Rule(r"channels\.norm\.bias", "norm.bias"),
    Rule(r"head\.weight", "head.kernel", (1, 0)),
    Rule(r"(conv|head)\.bias", r"\1.bias"),
)
CNN_LAYERS = (
    Rule(r"conv|act", r"\g<0>", (0, 2, 3, 1)),
    Rule(r"channels\.norm", "norm"),
    Rule(r"head", r"\g<0>"),
)
IMAGES = numbers(2, 3, 6, 6)


def cnn_params(module: nn.Module) -> dict:
    w = {name: t.detach().numpy() for name, t in module.state_dict().items()}
    return {
        "conv": {"kernel": w["conv.weight"].transpose(2, 3, 1, 0), "bias": w["conv.bias"]},
        "norm": {"scale": w["channels.norm.weight"], "bias": w["channels.norm.bias"]},
        "head": {"kernel": w["head.weight"].T, "bias": w["head.bias"]},
    }


def compare_cnn(port: LinenCNN, **kwargs):
    module = torch_cnn()
    return parity.compare(
        module,
        parity.linen_function(port),
        kwargs.pop("params", cnn_params(module)),
        [IMAGES],
        jax_inputs=[IMAGES.transpose(0, 2, 3, 1)],
        weights=CNN_WEIGHTS,
        layers=CNN_LAYERS,
        **kwargs,
    )


def test_a_right_linen_cnn_agrees_in_layers_gradients_updates_and_trajectory():
    optimizers = (
        lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
        optax.adamw(1e-2, weight_decay=0.1),
    )
    result = compare_cnn(LinenCNN(), optimizers=optimizers)
    assert result.verdict == "agrees", result.sentence
    layers = {t.tensor for t in result.tensors if t.stage == "activations"}
    assert layers == {"conv", "channels.norm", "act", "head", "output"}
    for stage in ("weights", "loss", "gradients", "update", "parameters", "trajectory"):
        assert result.stages[stage].compared > 0
    assert any("channels" in note for note in result.notes)


@pytest.mark.parametrize(
    ("port", "layer"),
    [(LinenCNN(eps=1e-6), "channels.norm"), (LinenCNN(approximate=True), "act")],
    ids=["LayerNorm's eps", "GELU by tanh"],
)
def test_a_wrong_linen_cnn_is_named_by_its_first_wrong_layer(port, layer):
    first = compare_cnn(port).first_divergence
    assert (first.stage, first.tensor) == ("activations", layer)


def test_weights_copied_wrongly_are_found_before_any_layer():
    params = cnn_params(torch_cnn())
    params["conv"]["kernel"] = params["conv"]["kernel"][::-1].copy()
    first = compare_cnn(LinenCNN(), params=params).first_divergence
    assert (first.stage, first.tensor) == ("weights", "conv.kernel")


@pytest.mark.parametrize(
    ("transformation", "stage"),
    [(optax.adamw(1e-2, weight_decay=1e-4), "update"), (optax.adam(1e-2), "update")],
    ids=["optax's default decay", "no decay"],
)
def test_a_wrong_optimizer_is_found_at_the_update(transformation, stage):
    first = compare_cnn(
        LinenCNN(), optimizers=(lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=1e-2), transformation)
    ).first_divergence
    assert first.stage == stage


class NNXBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(4, 8, rngs=rngs)
        self.down = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.tanh(self.up(self.norm(x))))


class NNXModel(nnx.Module):
    def __init__(self, wrong: bool):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([NNXBlock(rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 3, rngs=rngs)
        self.wrong = wrong

    def __call__(self, x):
        first, second = self.blocks
        x = second(first(x))
        return self.head(2 * x if self.wrong else x)


class TorchBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class TorchModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([TorchBlock(), TorchBlock()])
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


NNX_WEIGHTS = (
    Rule(r"(.*norm)\.weight", r"\1.scale"),
    Rule(r"(.*(?:up|down|head))\.weight", r"\1.kernel", (1, 0)),
    Rule(r"(.*)\.bias", r"\1.bias"),
)


def compare_nnx(wrong: bool):
    torch.manual_seed(1)
    module = TorchModel()
    model = NNXModel(wrong)
    for name, tensor in module.state_dict().items():
        *path, last = name.split(".")
        part = model
        for key in path:
            part = part[int(key)] if key.isdigit() else getattr(part, key)
        value = tensor.numpy()
        if last == "weight":
            last, value = ("scale", value) if value.ndim == 1 else ("kernel", value.T)
        setattr(part, last, nnx.Param(jnp.asarray(value)))
    function, params = parity.nnx_function(model)
    return parity.compare(module, function, params, [numbers(5, 4)], weights=NNX_WEIGHTS)


def test_a_right_nnx_model_agrees_with_every_module_compared():
    result = compare_nnx(wrong=False)
    assert result.verdict == "agrees", result.sentence
    assert not result.notes
    layers = [t.tensor for t in result.tensors if t.stage == "activations"]
    assert layers[:4] == ["blocks.0.norm", "blocks.0.up", "blocks.0.down", "blocks.0"]


def test_a_wrong_nnx_model_is_named_by_its_first_wrong_layer():
    first = compare_nnx(wrong=True).first_divergence
    assert (first.stage, first.tensor) == ("activations", "head")


def torch_mlp() -> nn.Module:
    torch.manual_seed(2)
    module = nn.Sequential(OrderedDict([("fc", nn.Linear(4, 6)), ("act", nn.ReLU()), ("out", nn.Linear(6, 2))]))
    with torch.no_grad():
        module.fc.weight[0] = 0  # with a zero bias: this unit sits exactly on relu's corner
        module.fc.bias[0] = 0
    return module


def plain_mlp(relu):
    def function(params, x):
        x = checkpoint_name(x @ params["fc"]["weight"].T + params["fc"]["bias"], "fc")
        x = checkpoint_name(relu(x), "act")
        return checkpoint_name(x @ params["out"]["weight"].T + params["out"]["bias"], "out")

    return function


def cross_entropy(output, targets):
    return torch.nn.functional.cross_entropy(output, targets)


def compare_plain(relu):
    module = torch_mlp()
    params: dict = {"fc": {}, "out": {}}
    for name, tensor in module.state_dict().items():
        layer, leaf = name.split(".")
        params[layer][leaf] = tensor.numpy()
    targets = np.array([0, 1, 1])
    losses = (
        lambda output, x: cross_entropy(output, torch.from_numpy(targets)),
        lambda output, x: optax.softmax_cross_entropy_with_integer_labels(output, targets).mean(),
    )
    return parity.compare(module, plain_mlp(relu), params, [numbers(3, 4)], losses=losses)


def test_a_right_plain_function_agrees_under_the_identity_of_names():
    result = compare_plain(jax.nn.relu)
    assert result.verdict == "agrees", result.sentence
    assert result.stages["gradients"].compared >= 7


def test_a_wrong_gradient_at_a_tie_is_found_where_it_enters():
    """maximum(x, 0) is relu, but for its gradient of one half where x is exactly zero."""
    first = compare_plain(lambda x: jnp.maximum(x, 0)).first_divergence
    assert (first.stage, first.tensor) == ("gradients", "d fc")


def test_layers_that_do_not_match_up_are_refused_with_the_names_of_both_sides():
    module = torch_cnn()
    with pytest.raises(UserError, match=r"no layer of torch .*conv.* has its tag in JAX .*head"):
        parity.compare(
            module,
            parity.linen_function(LinenCNN()),
            cnn_params(module),
            [IMAGES],
            jax_inputs=[IMAGES.transpose(0, 2, 3, 1)],
            weights=CNN_WEIGHTS,
            layers=(Rule(r"layer\d", "x"),),
        )


def test_the_users_module_is_left_as_it_was():
    module = torch_cnn()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    parity.compare(
        module,
        parity.linen_function(LinenCNN()),
        cnn_params(module),
        [IMAGES],
        jax_inputs=[IMAGES.transpose(0, 2, 3, 1)],
        weights=CNN_WEIGHTS,
        layers=CNN_LAYERS,
        optimizers=(lambda params: torch.optim.SGD(params, lr=0.1), optax.sgd(0.1)),
    )
    assert all(torch.equal(before[name], t) and t.dtype == torch.float32 for name, t in module.state_dict().items())


class Tower(nn.Module):
    """Three linear layers, each with a tanh."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("wrong", [False, True])
def test_layers_in_a_scan_are_matched_to_torchs_one_by_one(wrong):
    def scanned(params, x):
        layers = [params["layers"][str(i)] for i in range(3)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layers[::-1] if wrong else layers))
        body = lambda x, p: (jnp.tanh(checkpoint_name(x @ p["weight"].T + p["bias"], "layers")), None)
        return jax.lax.scan(body, x, stacked)[0]

    tower = Tower()
    params = unflatten({name: t.numpy() for name, t in tower.state_dict().items()})
    result = parity.compare(tower, scanned, params, (numbers(5, 4),))
    assert [t.tensor for t in result.tensors if t.stage == "activations"] == [
        *(f"layers.{i}" for i in range(3)),
        "output",
    ]
    if wrong:
        assert (result.first_divergence.stage, result.first_divergence.tensor) == ("activations", "layers.0")
    else:
        assert result.verdict == "agrees", result.sentence


def test_a_function_or_an_optimizer_that_raises_is_a_divergence_with_its_line():
    def broken(*args):
        raise TypeError("two strings cannot be multiplied")

    result = compare_plain(broken)
    first = result.first_divergence
    assert (first.stage, first.tensor, result.stages["weights"].verdict) == ("activations", "function", "agrees")
    assert re.fullmatch(r"TypeError: two strings .*tests/parity/pair/test_compare\.py:\d+, in broken\)", first.note)
    optimizers = lambda params: torch.optim.SGD(params, lr=0.1), optax.GradientTransformation(lambda params: (), broken)
    result = compare_cnn(LinenCNN(), optimizers=optimizers)
    assert (result.first_divergence.stage, result.first_divergence.tensor) == ("update", "optimizer")
    assert result.stages["gradients"].verdict == "agrees"
