"""ViT: images transposed to NHWC, patches by a convolution, heads as an axis of the kernels; Flax NNX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import ViTConfig, ViTForImageClassification

from .bug import GELU, SDPA, Bug

V, D, F, H, C, L = 10, 24, 48, 4, 6, 2
B, IMAGE, PATCH = 2, 12, 4
EPS = 1e-12


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, list]:
    config = ViTConfig(
        hidden_size=D, num_hidden_layers=L, num_attention_heads=H, intermediate_size=F, image_size=IMAGE,
        patch_size=PATCH, num_labels=V, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(seed)
    module = ViTForImageClassification(config).eval()
    return module, [np.random.default_rng(seed).standard_normal((B, 3, IMAGE, IMAGE)).astype(np.float32)]


def gelu(x):
    return nnx.gelu(x, approximate=False)


def flatten(x_BHWD):
    return x_BHWD.reshape(x_BHWD.shape[0], -1, D)


def prepend(cls_11D, x_BTD):
    cls_B1D = jnp.broadcast_to(cls_11D, (x_BTD.shape[0], 1, D))
    return jnp.concatenate([cls_B1D, x_BTD], axis=1)


def attention(q_BTHC, k_BSHC, v_BSHC):
    scores_BHTS = jnp.einsum("bthc,bshc->bhts", q_BTHC, k_BSHC) * C**-0.5
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores_BHTS), v_BSHC)


def residual(layer, norm, x_BTD):
    return x_BTD + layer(norm(x_BTD))


def pool(x_BTD):
    return x_BTD[:, 0]


class Attention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.query = nnx.LinearGeneral(D, (H, C), rngs=rngs)
        self.key = nnx.LinearGeneral(D, (H, C), rngs=rngs)
        self.value = nnx.LinearGeneral(D, (H, C), rngs=rngs)
        self.out = nnx.LinearGeneral((H, C), D, axis=(-2, -1), rngs=rngs)

    def __call__(self, x_BTD):
        return self.out(attention(self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)))


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(D, F, rngs=rngs)
        self.down = nnx.Linear(F, D, rngs=rngs)

    def __call__(self, x_BTD):
        return self.down(gelu(self.up(x_BTD)))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm_1 = nnx.LayerNorm(D, epsilon=EPS, rngs=rngs)
        self.attention = Attention(rngs)
        self.norm_2 = nnx.LayerNorm(D, epsilon=EPS, rngs=rngs)
        self.mlp = MLP(rngs)

    def __call__(self, x_BTD):
        x_BTD = residual(self.attention, self.norm_1, x_BTD)
        return residual(self.mlp, self.norm_2, x_BTD)


class ViT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.patches = nnx.Conv(3, D, (PATCH, PATCH), strides=PATCH, padding="VALID", rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, D)))
        self.positions = nnx.Param(jnp.zeros((1, (IMAGE // PATCH) ** 2 + 1, D)))
        self.blocks = nnx.List(Block(rngs) for _ in range(L))
        self.norm = nnx.LayerNorm(D, epsilon=EPS, rngs=rngs)
        self.head = nnx.Linear(D, V, rngs=rngs)

    def __call__(self, image_BCHW):
        x_BTD = flatten(self.patches(image_BCHW.transpose(0, 2, 3, 1)))
        x_BTD = prepend(self.cls[...], x_BTD) + self.positions[...]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(pool(self.norm(x_BTD)))


def jax_side(state_dict: dict) -> tuple[Callable, nnx.State]:
    w = {name.removeprefix("vit."): x.detach().numpy() for name, x in state_dict.items()}

    def dense(name: str, kernel: tuple = (), bias: tuple = (-1,)) -> dict:
        weight = w[f"{name}.weight"].T
        return {"kernel": weight.reshape(kernel or weight.shape), "bias": w[f"{name}.bias"].reshape(bias)}

    def norm(name: str) -> dict:
        return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}

    def block(name: str) -> dict:
        heads = {
            part: dense(f"{name}.attention.{part[0]}_proj", (D, H, C), (H, C)) for part in ("query", "key", "value")
        }
        return {
            "norm_1": norm(f"{name}.layernorm_before"),
            "attention": {**heads, "out": dense(f"{name}.attention.o_proj", (H, C, D))},
            "norm_2": norm(f"{name}.layernorm_after"),
            "mlp": {"up": dense(f"{name}.mlp.fc1"), "down": dense(f"{name}.mlp.fc2")},
        }

    patches = "embeddings.patch_embeddings.projection"
    graphdef, params = nnx.split(ViT(nnx.Rngs(0)))
    nnx.replace_by_pure_dict(
        params,
        {
            "patches": {"kernel": w[f"{patches}.weight"].transpose(2, 3, 1, 0), "bias": w[f"{patches}.bias"]},
            "cls": w["embeddings.cls_token"],
            "positions": w["embeddings.position_embeddings"],
            "blocks": {i: block(f"layers.{i}") for i in range(L)},
            "norm": norm("layernorm"),
            "head": dense("classifier"),
        },
    )
    return lambda params, pixel_values: nnx.merge(graphdef, params)(pixel_values), params


OPTIONS: dict = {}


def over_heads(q_BTHC, k_BSHC, v_BSHC):
    """Axes in the order (B, H, T, C) expected, (B, T, H, C) given."""
    scores_BTHH = jnp.einsum("bthc,btgc->bthg", q_BTHC, k_BSHC) * C**-0.5
    return jnp.einsum("bthg,btgc->bthc", jax.nn.softmax(scores_BTHH), v_BSHC)


def unscaled(q_BTHC, k_BSHC, v_BSHC):
    scores_BHTS = jnp.einsum("bthc,bshc->bhts", q_BTHC, k_BSHC)
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores_BHTS), v_BSHC)


def append(cls_11D, x_BTD):
    return jnp.concatenate([x_BTD, jnp.broadcast_to(cls_11D, (x_BTD.shape[0], 1, D))], axis=1)


def by_columns(x_BHWD):
    return x_BHWD.transpose(0, 2, 1, 3).reshape(x_BHWD.shape[0], -1, D)


def from_the_norm(layer, norm, x_BTD):
    x_BTD = norm(x_BTD)
    return x_BTD + layer(x_BTD)


ATTENTION = r"vit\.layers\.0\.attention.*"
SDPA_OF_VIT = (SDPA, "modeling_vit.py:ViTAttention.forward: attn_output, attn_weights = attention_interface(")
BUGS = (
    Bug(
        "gelu by tanh, NNX's default", "gelu", nnx.gelu, r"vit\.layers\.0\.mlp.*",
        torch=("modeling_vit.py:ViTMLP.forward: hidden_states = self.activation_fn(hidden_states)", GELU),
    ),
    Bug(
        "patches column by column", "flatten", by_columns, r"vit\.embeddings.*",
        torch=("modeling_vit.py:ViTPatchEmbeddings.forward: return self.projection(pixel_values).flatten(2)",),
    ),
    Bug(
        "the class token last", "prepend", append, r"vit\.embeddings.*",
        torch=("modeling_vit.py:ViTEmbeddings.forward: embeddings = torch.cat((cls_tokens, embeddings)",),
    ),
    Bug("attention over heads", "attention", over_heads, ATTENTION, torch=SDPA_OF_VIT),
    Bug("scores not scaled", "attention", unscaled, ATTENTION, torch=SDPA_OF_VIT),
    Bug(
        "the residual starts at the norm", "residual", from_the_norm, r"vit\.layers\.0.*",
        torch=("modeling_vit.py:ViTLayer.forward[1]: hidden_states = hidden_states + residual",),
    ),
    Bug(
        "pooled by the mean", "pool", lambda x_BTD: x_BTD.mean(1), r"classifier",
        torch=("modeling_vit.py:ViTForImageClassification.forward: pooled_output = sequence_output[:, 0, :]",),
    ),
)  # fmt: skip
