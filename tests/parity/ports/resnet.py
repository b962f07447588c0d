"""ResNet in train mode: NCHW outside and NHWC inside, running statistics handed in and out; Flax Linen."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.linen import relu
from transformers import ResNetConfig, ResNetModel

from tests.parity.ports.bug import Bug

SIZES, DEPTHS = (8, 16), (2, 1)
MOMENTUM = 0.9  # of the old statistics: what torch calls 0.1
EPS = 1e-5

OPTIONS: dict[str, Any] = {}


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, list[np.ndarray]]:
    torch.manual_seed(seed)
    config = ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=list(SIZES), depths=list(DEPTHS), layer_type="basic"
    )
    model = ResNetModel(config).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    images_BCHW = np.random.default_rng(seed).uniform(0, 0.2, (3, 3, 16, 16)).astype(np.float32)
    return model, [images_BCHW]


def jax_side(state_dict: dict[str, torch.Tensor]) -> tuple[Callable, Any, Any]:
    tensors = {name: tensor.detach().numpy() for name, tensor in state_dict.items()}
    params: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    for torch_name, port_name in convolutions():
        params[port_name] = {
            "conv": {"kernel": tensors[f"{torch_name}.convolution.weight"].transpose(2, 3, 1, 0)},
            "norm": {
                "scale": tensors[f"{torch_name}.normalization.weight"],
                "bias": tensors[f"{torch_name}.normalization.bias"],
            },
        }
        mean, var = (tensors[f"{torch_name}.normalization.running_{name}"] for name in ("mean", "var"))
        buffers[port_name] = {"norm": {"mean": mean, "var": var}}
    return forward, params, buffers


def convolutions() -> list[tuple[str, str]]:
    """Each convolution with its norm: its name in torch and in the port."""
    names = [("embedder.embedder", "stem")]
    for stage, depth in enumerate(DEPTHS):
        for i in range(depth):
            block = f"encoder.stages.{stage}.layers.{i}"
            names += [(f"{block}.layer.{n}", f"stage{stage}_block{i}_conv{n}") for n in (0, 1)]
            if stage > 0 and i == 0:
                names.append((f"{block}.shortcut", f"stage{stage}_block{i}_shortcut"))
    return names


def forward(params: Any, buffers: Any, images_BCHW: jax.Array) -> tuple[dict[str, jax.Array], Any]:
    variables = {"params": params, "batch_stats": buffers}
    output, changed = ResNet().apply(variables, images_BCHW, mutable=["batch_stats"])
    return output, changed["batch_stats"]


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, images_BCHW: jax.Array) -> dict[str, jax.Array]:
        x_BHWC = jnp.transpose(images_BCHW, (0, 2, 3, 1))
        x_BHWC = max_pool(relu(ConvNorm(8, 7, 2, name="stem")(x_BHWC)))
        for stage, (channels, depth) in enumerate(zip(SIZES, DEPTHS, strict=True)):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage{stage}_block{i}"
                y_BHWC = relu(ConvNorm(channels, 3, stride, name=f"{name}_conv0")(x_BHWC))
                y_BHWC = ConvNorm(channels, 3, 1, name=f"{name}_conv1")(y_BHWC)
                if stride > 1:
                    x_BHWC = ConvNorm(channels, 1, stride, name=f"{name}_shortcut")(x_BHWC)
                x_BHWC = join(x_BHWC, y_BHWC)
        x_BCHW = jnp.transpose(x_BHWC, (0, 3, 1, 2))
        return {"last_hidden_state": x_BCHW, "pooler_output": jnp.mean(x_BCHW, (2, 3), keepdims=True)}


class ConvNorm(nn.Module):
    channels: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x_BHWC = nn.Conv(
            self.channels,
            (self.size, self.size),
            self.stride,
            padding=padding(self.size),
            use_bias=False,
            name="conv",
        )(x_BHWC)
        return BatchNorm(name="norm")(x_BHWC)


class BatchNorm(nn.Module):
    """BatchNorm as torch has it: normalized by the biased variance, the running one is unbiased."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        channels = x_BHWC.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = statistics(x_BHWC)
        running_mean.value = moved(running_mean.value, mean)
        running_var.value = moved(running_var.value, unbiased(var, x_BHWC.size // channels))
        return (x_BHWC - mean) * jax.lax.rsqrt(var + EPS) * scale + bias


def statistics(x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.mean(x_BHWC, (0, 1, 2)), jnp.var(x_BHWC, (0, 1, 2))


def unbiased(var: jax.Array, count: int) -> jax.Array:
    return var * count / (count - 1)


def moved(old: jax.Array, new: jax.Array) -> jax.Array:
    return MOMENTUM * old + (1 - MOMENTUM) * new


def padding(size: int) -> Any:
    return size // 2


def max_pool(x_BHWC: jax.Array) -> jax.Array:
    return nn.max_pool(x_BHWC, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def join(residual_BHWC: jax.Array, y_BHWC: jax.Array) -> jax.Array:
    return relu(residual_BHWC + y_BHWC)


def unbiased_statistics(x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.mean(x_BHWC, (0, 1, 2)), jnp.var(x_BHWC, (0, 1, 2), ddof=1)


def statistics_without_gradient(x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BHWC = jax.lax.stop_gradient(x_BHWC)
    return jnp.mean(x_BHWC, (0, 1, 2)), jnp.var(x_BHWC, (0, 1, 2))


def average_pool(x_BHWC: jax.Array) -> jax.Array:
    return nn.avg_pool(x_BHWC, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


FIRST = r"embedder\.embedder\.normalization"
BLOCK = r"encoder\.stages\.0\.layers\.0"
NORM = ("modeling_resnet.py:ResNetConvLayer.forward: hidden_states = self.normalization(hidden_states)",)
SUM = "modeling_resnet.py:ResNetBasicLayer.forward: hidden_state += residual"
BUGS = (
    Bug(
        "SAME padding, which at stride 2 pads less on the left", "padding", lambda _: "SAME",
        r"embedder\.embedder.*",
        torch=("modeling_resnet.py:ResNetConvLayer.forward: hidden_states = self.convolution(hidden_states)",),
    ),
    Bug("the variance that normalizes is unbiased", "statistics", unbiased_statistics, FIRST, torch=NORM),
    Bug("the epsilon", "EPS", 1e-3, FIRST, torch=NORM),
    Bug(
        "an average for a maximum", "max_pool", average_pool, r"embedder\.pooler",
        torch=("modeling_resnet.py:ResNetEmbeddings.forward: embedding = self.pooler(embedding)",),
    ),
    Bug("the residual missing", "join", lambda _, y_BHWC: relu(y_BHWC), rf"{BLOCK}(\.activation)?", torch=(SUM,)),
    Bug(
        "the activation before the sum", "join", lambda x, y_BHWC: x + relu(y_BHWC), rf"{BLOCK}(\.activation)?",
        torch=(SUM, "modeling_resnet.py:ResNetBasicLayer.forward: hidden_state = self.activation(hidden_state)"),
    ),
    # Only the running statistics show these two, and only gradients the third.
    Bug("momentum in the wrong sense", "MOMENTUM", 0.1, FIRST, torch=NORM, stage="parameters"),
    Bug(
        "the running variance is biased", "unbiased", lambda var, _: var, FIRST,
        torch=NORM, jax=("resnet.py:moved: return MOMENTUM * old",), stage="parameters",
    ),
    Bug(
        "no gradient through the statistics", "statistics", statistics_without_gradient, FIRST,
        torch=(*NORM, "modeling_resnet.py:ResNetShortCut.forward: hidden_state = self.normalization("),
        stage="gradients",
    ),
)  # fmt: skip
