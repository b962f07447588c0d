"""BERT with a padding mask: heads as an axis of the kernels, compute dtype float32; Flax Linen."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from transformers import BertConfig, BertModel

from .bug import GELU, PADDING_MASK, Bug

V, D, F, H, C, L = 50, 24, 48, 4, 6, 2
B, T = 2, 8
EPS = 1e-12
Dense = partial(linen.Dense, dtype=jnp.float32)
DenseGeneral = partial(linen.DenseGeneral, dtype=jnp.float32)
Embed = partial(linen.Embed, features=D, dtype=jnp.float32)


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, dict]:
    config = BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=H, intermediate_size=F,
        max_position_embeddings=16, initializer_range=0.2, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    module = BertModel(config).eval()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 1:
                p.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    rng = np.random.default_rng(seed)
    lengths_B = np.array([T, T - 3])
    return module, {
        "input_ids": rng.integers(1, V, (B, T)),
        "attention_mask": (np.arange(T) < lengths_B[:, None]).astype(np.int64),
        "token_type_ids": rng.integers(0, 2, (B, T)),
    }


def layer_norm(name: str) -> linen.LayerNorm:
    return linen.LayerNorm(epsilon=EPS, dtype=jnp.float32, name=name)


def gelu(x):
    return linen.gelu(x, approximate=False)


def positions(x_BT):
    return jnp.arange(x_BT.shape[1])[None]


def attention(q_BTHC, k_BSHC, v_BSHC, mask_BS):
    return linen.dot_product_attention(q_BTHC, k_BSHC, v_BSHC, mask=mask_BS[:, None, None, :] > 0)


def add_and_norm(x_BTD, update_BTD, norm):
    return norm(x_BTD + update_BTD)


def pool(x_BTD):
    return x_BTD[:, 0]


class SelfAttention(linen.Module):
    @linen.compact
    def __call__(self, x_BTD, mask_BT):
        q_BTHC = DenseGeneral((H, C), name="query")(x_BTD)
        k_BTHC = DenseGeneral((H, C), name="key")(x_BTD)
        v_BTHC = DenseGeneral((H, C), name="value")(x_BTD)
        return DenseGeneral(D, axis=(-2, -1), name="out")(attention(q_BTHC, k_BTHC, v_BTHC, mask_BT))


class Layer(linen.Module):
    @linen.compact
    def __call__(self, x_BTD, mask_BT):
        x_BTD = add_and_norm(x_BTD, SelfAttention(name="attention")(x_BTD, mask_BT), layer_norm("attention_norm"))
        h_BTF = gelu(Dense(F, name="up")(x_BTD))
        return add_and_norm(x_BTD, Dense(D, name="down")(h_BTF), layer_norm("mlp_norm"))


class Bert(linen.Module):
    @linen.compact
    def __call__(self, input_ids, attention_mask, token_type_ids):
        x_BTD = Embed(V, name="words")(input_ids) + Embed(2, name="types")(token_type_ids)
        x_BTD = layer_norm("norm")(x_BTD + Embed(16, name="positions")(positions(input_ids)))
        for i in range(L):
            x_BTD = Layer(name=f"layer_{i}")(x_BTD, attention_mask)
        pooled_BD = linen.tanh(Dense(D, name="pooler")(pool(x_BTD)))
        return {"last_hidden_state": x_BTD, "pooler_output": pooled_BD}


def layer_params(w: dict, name: str) -> dict:
    def dense(part: str) -> dict:
        return {"kernel": w[f"{name}.{part}.weight"].T, "bias": w[f"{name}.{part}.bias"]}

    def heads(part: str) -> dict:
        return {"kernel": dense(part)["kernel"].reshape(D, H, C), "bias": dense(part)["bias"].reshape(H, C)}

    out = dense("attention.output.dense")
    attention = {part: heads(f"attention.self.{part}") for part in ("query", "key", "value")}
    attention["out"] = {"kernel": out["kernel"].reshape(H, C, D), "bias": out["bias"]}
    return {
        "attention": attention,
        "attention_norm": norm_params(w, f"{name}.attention.output.LayerNorm"),
        "up": dense("intermediate.dense"),
        "down": dense("output.dense"),
        "mlp_norm": norm_params(w, f"{name}.output.LayerNorm"),
    }


def norm_params(w: dict, name: str) -> dict:
    return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}


def jax_side(state_dict: dict) -> tuple[Callable, dict]:
    w = {name: x.detach().numpy() for name, x in state_dict.items()}
    params = {
        "words": {"embedding": w["embeddings.word_embeddings.weight"]},
        "types": {"embedding": w["embeddings.token_type_embeddings.weight"]},
        "positions": {"embedding": w["embeddings.position_embeddings.weight"]},
        "norm": norm_params(w, "embeddings.LayerNorm"),
        **{f"layer_{i}": layer_params(w, f"encoder.layer.{i}") for i in range(L)},
        "pooler": {"kernel": w["pooler.dense.weight"].T, "bias": w["pooler.dense.bias"]},
    }
    module = Bert()
    return lambda params, **inputs: module.apply({"params": params}, **inputs), params


OPTIONS: dict = {}


def unmasked_attention(q_BTHC, k_BSHC, v_BSHC, mask_BS):
    return linen.dot_product_attention(q_BTHC, k_BSHC, v_BSHC)


def swapped_attention(q_BTHC, k_BSHC, v_BSHC, mask_BS):
    return linen.dot_product_attention(k_BSHC, q_BTHC, v_BSHC, mask=mask_BS[:, None, None, :] > 0)


def pre_norm(x_BTD, update_BTD, norm):
    return x_BTD + norm(update_BTD)


ATTENTION = r"encoder\.layer\.0\.attention.*"
BUGS = (
    Bug(
        "Keras' epsilon in the norms", "EPS", 1e-3, r"embeddings\.LayerNorm",
        torch=("modeling_bert.py:BertEmbeddings.forward: embeddings = self.LayerNorm(embeddings)",),
        jax=('bert.py:Bert.__call__: x_BTD = layer_norm("norm")(',),
    ),
    Bug(
        "gelu by tanh, Linen's default", "gelu", linen.gelu, r"encoder\.layer\.0\.intermediate.*",
        torch=("modeling_bert.py:BertIntermediate.forward: hidden_states = self.intermediate_act_fn(", GELU),
    ),
    Bug(
        "positions from 2, as in RoBERTa", "positions", lambda x: 2 + jnp.arange(x.shape[1])[None], r"embeddings.*",
        torch=(
            "modeling_bert.py:BertEmbeddings.forward: position_ids = self.position_ids[:, cache_length",
            "modeling_bert.py:BertEmbeddings.forward: position_embeddings = self.position_embeddings(position_ids)",
        ),
    ),
    Bug(
        "padding is attended to", "attention", unmasked_attention, ATTENTION,
        torch=(
            "modeling_bert.py:eager_attention_forward: attn_weights = attn_weights + attention_mask",
            "modeling_bert.py:BertModel._create_attention_masks: attention_mask = create_bidirectional_mask(",
            *PADDING_MASK,
        ),
    ),
    Bug(
        "queries and keys exchanged", "attention", swapped_attention, ATTENTION,
        torch=("modeling_bert.py:eager_attention_forward: attn_weights = torch.matmul(query, key",),
    ),
    Bug(
        "the update is normed, not the sum", "add_and_norm", pre_norm, r"encoder\.layer\.0\.attention\.output.*",
        torch=("modeling_bert.py:BertSelfOutput.forward: hidden_states = self.LayerNorm(hidden_states + ",),
    ),
    Bug(
        "no residual", "add_and_norm", lambda x, y, norm: norm(y), r"encoder\.layer\.0\.attention\.output.*",
        torch=("modeling_bert.py:BertSelfOutput.forward: hidden_states = self.LayerNorm(hidden_states + ",),
    ),
    Bug(
        "pooled by the mean", "pool", lambda x_BTD: x_BTD.mean(1), r"pooler.*",
        torch=("modeling_bert.py:BertPooler.forward: first_token_tensor = hidden_states[:, 0]",),
    ),
)  # fmt: skip
