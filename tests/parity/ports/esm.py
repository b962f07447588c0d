"""ESM-2: a protein encoder with rotary, written for one sequence and vmapped, layers stacked in a scan; Equinox."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import EsmConfig, EsmModel

from tests.parity.ports.bug import PADDING_MASK, Bug

LAYERS, HEADS = 2, 4
MASK_TOKEN = 32
MASKED_IN_TRAINING = 0.15 * 0.8
BASE = 10000.0
EPS = 1e-5

OPTIONS: dict[str, Any] = {}


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    torch.manual_seed(seed)
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=MASK_TOKEN,
        pad_token_id=1,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=40,
        initializer_range=0.3,
        layer_norm_eps=EPS,
        position_embedding_type="rotary",
        token_dropout=True,
        attn_implementation="eager",
    )
    model = EsmModel(config).eval()
    with torch.no_grad():
        model.embeddings.word_embeddings.weight *= 0.1
        for name, weight in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(0, 0.2)
    rng = np.random.default_rng(seed)
    ids_BT = rng.integers(4, 24, (2, 9))
    ids_BT[0, 3] = MASK_TOKEN
    mask_BT = np.ones((2, 9), np.int64)
    mask_BT[1, 6:] = 0
    ids_BT[1, 6:] = 1
    return model, {"input_ids": ids_BT, "attention_mask": mask_BT}


class Linear(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.weight.T + self.bias


class LayerNorm(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        centred = x - jnp.mean(x, -1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + EPS) * self.weight + self.bias


class Attention(eqx.Module):
    query: Linear
    key: Linear
    value: Linear
    output: Linear

    def __call__(self, x_TD: jax.Array, mask_S: jax.Array) -> jax.Array:
        q_THC = rotate(split_heads(self.query(x_TD)))
        k_SHC = rotate(split_heads(self.key(x_TD)))
        v_SHC = split_heads(self.value(x_TD))
        scores_HTS = jnp.einsum("thc,shc->hts", q_THC, k_SHC) * scale(q_THC)
        weights_HTS = jax.nn.softmax(hide_padding(scores_HTS, mask_S))
        return self.output(jnp.einsum("hts,shc->thc", weights_HTS, v_SHC).reshape(x_TD.shape))


class Layer(eqx.Module):
    attention_norm: LayerNorm
    attention: Attention
    mlp_norm: LayerNorm
    up: Linear
    down: Linear

    def __call__(self, x_TD: jax.Array, mask_S: jax.Array) -> jax.Array:
        x_TD = residual(lambda x_TD: self.attention(x_TD, mask_S), self.attention_norm, x_TD)
        return residual(lambda x_TD: self.down(gelu(self.up(x_TD))), self.mlp_norm, x_TD)


class Esm(eqx.Module):
    embedding: jax.Array
    layers: Layer  # with a leading axis of layers
    norm: LayerNorm
    pooler: Linear

    def __call__(self, ids_T: jax.Array, mask_T: jax.Array) -> dict[str, jax.Array]:
        x_TD = embed(self.embedding, ids_T, mask_T)
        x_TD, _ = jax.lax.scan(lambda x_TD, layer: (layer(x_TD, mask_T), None), x_TD, self.layers)
        x_TD = final(self.norm, x_TD)
        return {"last_hidden_state": x_TD, "pooler_output": jnp.tanh(self.pooler(x_TD[0]))}


def forward(model: Esm, input_ids: jax.Array, attention_mask: jax.Array) -> dict[str, jax.Array]:
    return jax.vmap(model)(input_ids, attention_mask)


def jax_side(state_dict: dict[str, torch.Tensor]) -> tuple[Callable, Any]:
    tensors = {name: tensor.detach().numpy() for name, tensor in state_dict.items()}

    def weights(kind: Callable, name: str) -> Any:
        return kind(tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    linear, norm = partial(weights, Linear), partial(weights, LayerNorm)

    def layer(i: int) -> Layer:
        prefix = f"encoder.layer.{i}"
        inside = f"{prefix}.attention.self"
        return Layer(
            norm(f"{prefix}.attention.LayerNorm"),
            Attention(
                linear(f"{inside}.query"),
                linear(f"{inside}.key"),
                linear(f"{inside}.value"),
                linear(f"{prefix}.attention.output.dense"),
            ),
            norm(f"{prefix}.LayerNorm"),
            linear(f"{prefix}.intermediate.dense"),
            linear(f"{prefix}.output.dense"),
        )

    layers = jax.tree.map(lambda *leaves: np.stack(leaves), *[layer(i) for i in range(LAYERS)])
    embedding = tensors["embeddings.word_embeddings.weight"]
    return forward, Esm(embedding, layers, norm("encoder.emb_layer_norm_after"), linear("pooler.dense"))


def embed(embedding_VD: jax.Array, ids_T: jax.Array, mask_T: jax.Array) -> jax.Array:
    masked_T = ids_T == MASK_TOKEN
    x_TD = jnp.where(masked_T[:, None], 0.0, jnp.asarray(embedding_VD)[ids_T])
    return x_TD * as_in_training(jnp.sum(masked_T) / jnp.sum(mask_T)) * mask_T[:, None]


def as_in_training(masked: jax.Array) -> jax.Array:
    return (1 - MASKED_IN_TRAINING) / (1 - masked)


def residual(function: Callable, norm: LayerNorm, x_TD: jax.Array) -> jax.Array:
    return x_TD + function(norm(x_TD))


def split_heads(x_TD: jax.Array) -> jax.Array:
    return x_TD.reshape(len(x_TD), HEADS, -1)


def rotate(x_THC: jax.Array) -> jax.Array:
    length, _, per_head = x_THC.shape
    frequencies = BASE ** (-jnp.arange(0, per_head, 2, dtype=jnp.float32) / per_head)
    angles_T1C = (jnp.arange(length)[:, None] * frequencies)[:, None]
    first, second = jnp.split(x_THC, 2, -1)
    cos, sin = jnp.cos(angles_T1C), jnp.sin(angles_T1C)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def scale(q_THC: jax.Array) -> float:
    return q_THC.shape[-1] ** -0.5


def hide_padding(scores_HTS: jax.Array, mask_S: jax.Array) -> jax.Array:
    return jnp.where(mask_S > 0, scores_HTS, -jnp.inf)


def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def final(norm: LayerNorm, x_TD: jax.Array) -> jax.Array:
    return norm(x_TD)


def residual_after_norm(function: Callable, norm: LayerNorm, x_TD: jax.Array) -> jax.Array:
    x_TD = norm(x_TD)
    return x_TD + function(x_TD)


def split_channels_first(x_TD: jax.Array) -> jax.Array:
    return x_TD.reshape(len(x_TD), -1, HEADS).swapaxes(1, 2)


def rotate_backwards(x_THC: jax.Array) -> jax.Array:
    length, _, per_head = x_THC.shape
    frequencies = BASE ** (-jnp.arange(0, per_head, 2, dtype=jnp.float32) / per_head)
    angles_T1C = (jnp.arange(length)[:, None] * frequencies)[:, None]
    first, second = jnp.split(x_THC, 2, -1)
    cos, sin = jnp.cos(angles_T1C), jnp.sin(angles_T1C)
    return jnp.concatenate([first * cos + second * sin, second * cos - first * sin], -1)


def quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


ATTENTION = r"encoder\.layer\.0\.attention(\.self|\.output)?.*"
BUGS = (
    Bug(
        "the embeddings not scaled for masked tokens", "as_in_training", lambda masked: 1.0, r"embeddings.*",
        torch=("modeling_esm.py:EsmEmbeddings.forward: embeddings = (embeddings * (1 - mask_ratio_train)",),
    ),
    Bug(
        "the heads split channels first", "split_heads", split_channels_first, ATTENTION,
        torch=(
            "modeling_esm.py:EsmSelfAttention.forward: query_layer = self.query(hidden_states)",
            "modeling_esm.py:EsmSelfAttention.forward: key_layer = self.key(current_states)",
            "modeling_esm.py:EsmSelfAttention.forward: value_layer = self.value(current_states)",
        ),
    ),
    Bug(
        "the scale of the scores missing", "scale", lambda q_THC: 1.0, ATTENTION,
        torch=("modeling_esm.py:EsmSelfAttention.forward: query_layer = query_layer * self.attention_head_size",),
    ),
    Bug(
        "rotary in the other direction", "rotate", rotate_backwards, ATTENTION,
        torch=(
            "modeling_esm.py:apply_rotary_pos_emb: q_embed = ",
            "modeling_esm.py:apply_rotary_pos_emb: k_embed = ",
            "modeling_esm.py:rotate_half: return torch.cat((-x2, x1), dim=-1)",
        ),
    ),
    Bug(
        "the padding ignored", "hide_padding", lambda scores_HTS, mask_S: scores_HTS, ATTENTION,
        torch=(
            "modeling_esm.py:eager_attention_forward: attn_weights = attn_weights + attention_mask",
            "modeling_esm.py:EsmModel._create_attention_masks: attention_mask = create_bidirectional_mask(",
            *PADDING_MASK,
        ),
    ),
    Bug(
        "gelu by a sigmoid, as in CLIP", "gelu", quick_gelu, r"encoder\.layer\.0\.(intermediate|output\.dense)",
        torch=("modeling_esm.py:gelu: return x * 0.5 *",),
    ),
    Bug(
        "the residual taken after the norm", "residual", residual_after_norm,
        r"encoder\.layer\.0\.attention(\.output)?",
        torch=("modeling_esm.py:EsmSelfOutput.forward: hidden_states = hidden_states + input_tensor",),
    ),
    Bug(
        "the final norm missing", "final", lambda norm, x_TD: x_TD, r"encoder\.emb_layer_norm_after",
        torch=("modeling_esm.py:EsmEncoder.forward: hidden_states = self.emb_layer_norm_after(hidden_states)",),
        jax=('esm.py:Esm.__call__: return {"last_hidden_state"',),
        inside=("esm.py:Linear.__call__: return x @ self.weight.T",),
    ),
    Bug(
        "BERT's epsilon", "EPS", 1e-12, r"encoder\.layer\.0\.attention\.LayerNorm",
        torch=("modeling_esm.py:EsmAttention.forward: hidden_states_ln = self.LayerNorm(hidden_states)",),
    ),
)  # fmt: skip
