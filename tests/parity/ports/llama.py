"""Llama: layers stacked in one scan, grouped key/value heads, a tied head, norms and rotary in float32; plain JAX."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.nn import silu
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parity.ports.bug import CAUSAL_MASK, PADDING_MASK, SILU, Bug

LAYERS, HEADS, KEY_HEADS, WIDTH = 2, 4, 2, 32
BASE = 10000.0
EPS = 1e-5

OPTIONS: dict[str, Any] = {}


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=44,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
        initializer_range=0.2,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight *= 0.1
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    ids_BT = np.random.default_rng(seed).integers(1, 50, (2, 8))
    mask_BT = np.ones((2, 8), np.int64)
    mask_BT[1, 6:] = 0
    return model, {"input_ids": ids_BT, "attention_mask": mask_BT}


def jax_side(state_dict: dict[str, torch.Tensor]) -> tuple[Callable, Any]:
    tensors = {name: tensor.detach().numpy() for name, tensor in state_dict.items()}
    per_head = WIDTH // HEADS

    def stacked(name: str) -> np.ndarray:
        return np.stack([tensors[f"model.layers.{i}.{name}.weight"] for i in range(LAYERS)])

    def kernels(name: str) -> np.ndarray:
        return stacked(name).swapaxes(1, 2)

    def heads(name: str) -> np.ndarray:
        return kernels(f"self_attn.{name}").reshape(LAYERS, WIDTH, -1, per_head)

    layers = {
        "attention_norm": stacked("input_layernorm"),
        "q": heads("q_proj"),
        "k": heads("k_proj"),
        "v": heads("v_proj"),
        "o": kernels("self_attn.o_proj").reshape(LAYERS, HEADS, per_head, WIDTH),
        "mlp_norm": stacked("post_attention_layernorm"),
        "gate": kernels("mlp.gate_proj"),
        "up": kernels("mlp.up_proj"),
        "down": kernels("mlp.down_proj"),
    }
    params = {
        "embedding": tensors["model.embed_tokens.weight"],
        "layers": layers,
        "norm": tensors["model.norm.weight"],
    }
    return forward, params


def forward(params: Any, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    x_BTD = jnp.asarray(params["embedding"])[input_ids]
    layer = partial(block, table=rotary_table(input_ids.shape[1]), mask_BTS=causal_and_padding(attention_mask))
    x_BTD, _ = jax.lax.scan(lambda x_BTD, w: (layer(x_BTD, w), None), x_BTD, params["layers"])
    return head(norm(x_BTD, params["norm"]), params["embedding"])


def block(x_BTD: jax.Array, w: Any, table: Any, mask_BTS: jax.Array) -> jax.Array:
    x_BTD = x_BTD + attention(norm(x_BTD, w["attention_norm"]), w, table, mask_BTS)
    return x_BTD + mlp(norm(x_BTD, w["mlp_norm"]), w)


def attention(x_BTD: jax.Array, w: Any, table: Any, mask_BTS: jax.Array) -> jax.Array:
    q_BTHC = rotate(jnp.einsum("btd,dhc->bthc", x_BTD, w["q"]), *table)
    k_BSHC = repeat_heads(rotate(jnp.einsum("bsd,dkc->bskc", x_BTD, w["k"]), *table))
    v_BSHC = repeat_heads(jnp.einsum("bsd,dkc->bskc", x_BTD, w["v"]))
    scores_BHTS = jnp.einsum("bthc,bshc->bhts", q_BTHC, k_BSHC) * scale(q_BTHC)
    scores_BHTS = jnp.where(mask_BTS[:, None], scores_BHTS, -1e30)
    weights_BHTS = jax.nn.softmax(scores_BHTS.astype(jnp.float32)).astype(x_BTD.dtype)
    return jnp.einsum("bhts,bshc,hcd->btd", weights_BHTS, v_BSHC, w["o"])


def mlp(x_BTD: jax.Array, w: Any) -> jax.Array:
    return (silu(x_BTD @ w["gate"]) * (x_BTD @ w["up"])) @ w["down"]


def norm(x_BTD: jax.Array, weight_D: jax.Array) -> jax.Array:
    wide_BTD = x_BTD.astype(jnp.float32)
    mean_square_BT1 = jnp.mean(wide_BTD**2, -1, keepdims=True)
    return weight_D * (wide_BTD * jax.lax.rsqrt(mean_square_BT1 + EPS)).astype(x_BTD.dtype)


def rotary_table(length: int) -> tuple[jax.Array, jax.Array]:
    per_head = WIDTH // HEADS
    frequencies = BASE ** (-jnp.arange(0, per_head, 2, dtype=jnp.float32) / per_head)
    angles_T1C = jnp.arange(length)[:, None, None] * jnp.tile(frequencies, 2)
    return jnp.cos(angles_T1C), jnp.sin(angles_T1C)


def rotate(x_BTHC: jax.Array, cos_T1C: jax.Array, sin_T1C: jax.Array) -> jax.Array:
    first, second = jnp.split(x_BTHC, 2, -1)
    return x_BTHC * cos_T1C + jnp.concatenate([-second, first], -1) * sin_T1C


def repeat_heads(x_BSKC: jax.Array) -> jax.Array:
    return jnp.repeat(x_BSKC, HEADS // KEY_HEADS, axis=2)


def scale(q_BTHC: jax.Array) -> float:
    return q_BTHC.shape[-1] ** -0.5


def causal_and_padding(attention_mask: jax.Array) -> jax.Array:
    length = attention_mask.shape[1]
    return jnp.tril(jnp.ones((length, length), bool)) & (attention_mask[:, None, :] > 0)


def head(x_BTD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
    return x_BTD @ jnp.asarray(embedding_VD).T


def rotate_pairs(x_BTHC: jax.Array, cos_T1C: jax.Array, sin_T1C: jax.Array) -> jax.Array:
    rotated = jnp.stack([-x_BTHC[..., 1::2], x_BTHC[..., ::2]], -1).reshape(x_BTHC.shape)
    return x_BTHC * cos_T1C + rotated * sin_T1C


def tile_heads(x_BSKC: jax.Array) -> jax.Array:
    return jnp.tile(x_BSKC, (1, 1, HEADS // KEY_HEADS, 1))


def mlp_exchanged(x_BTD: jax.Array, w: Any) -> jax.Array:
    return (silu(x_BTD @ w["up"]) * (x_BTD @ w["gate"])) @ w["down"]


def only_causal(attention_mask: jax.Array) -> jax.Array:
    length = attention_mask.shape[1]
    return jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (len(attention_mask), length, length))


def causal_one_further(attention_mask: jax.Array) -> jax.Array:
    length = attention_mask.shape[1]
    return jnp.tril(jnp.ones((length, length), bool), 1) & (attention_mask[:, None, :] > 0)


def head_without_gradient(x_BTD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
    return x_BTD @ jax.lax.stop_gradient(jnp.asarray(embedding_VD)).T


ATTENTION = r"model\.layers\.0\.self_attn.*"
MASKED = "llama.py:attention: scores_BHTS = jnp.where(mask_BTS"
MASK = (
    "modeling_llama.py:eager_attention_forward: attn_weights = attn_weights + attention_mask",
    "modeling_llama.py:LlamaModel.forward: causal_mask = create_causal_mask(",
)
BUGS = (
    Bug(
        "the rotary table's base", "BASE", 5000.0, rf"model\.rotary_emb|{ATTENTION}",
        torch=(
            "modeling_llama.py:LlamaRotaryEmbedding.forward: freqs = position_ids[..., None].float() * self.inv_freq",
            "modeling_llama.py:LlamaRotaryEmbedding.compute_default_rope_parameters: inv_freq = 1.0 / (base",
        ),
    ),
    Bug(
        "rotary by neighbouring pairs", "rotate", rotate_pairs, ATTENTION,
        torch=(
            "modeling_llama.py:rotate_half: return torch.cat((-x2, x1), dim=-1)",
            "modeling_llama.py:rotate_half: x1 = ",
            "modeling_llama.py:rotate_half: x2 = ",
            "modeling_llama.py:apply_rotary_pos_emb: q_embed = ",
            "modeling_llama.py:apply_rotary_pos_emb: k_embed = ",
        ),
    ),
    Bug(
        "key/value heads tiled where they are to be repeated", "repeat_heads", tile_heads, ATTENTION,
        torch=(
            "modeling_llama.py:repeat_kv: hidden_states = hidden_states[:, :, None, :, :].expand(",
            "modeling_llama.py:repeat_kv: return hidden_states.reshape(",
            "modeling_llama.py:eager_attention_forward: key_states = repeat_kv(",
            "modeling_llama.py:eager_attention_forward: value_states = repeat_kv(",
        ),
    ),
    Bug(
        "the scale of the scores missing", "scale", lambda q_BTHC: 1.0, ATTENTION,
        torch=("modeling_llama.py:eager_attention_forward: attn_weights = torch.matmul(query, key_states",),
    ),
    Bug(
        "the padding ignored", "causal_and_padding", only_causal, ATTENTION,
        torch=(*MASK, *PADDING_MASK), jax=(MASKED,),
    ),
    Bug(
        "the causal mask lets one token too many through", "causal_and_padding", causal_one_further, ATTENTION,
        torch=(*MASK, *CAUSAL_MASK), jax=(MASKED,),
    ),
    Bug(
        "gate and up exchanged", "mlp", mlp_exchanged, r"model\.layers\.0\.mlp.*",
        torch=("modeling_llama.py:LlamaMLP.forward: down_proj = self.down_proj(self.act_fn(", SILU),
    ),
    Bug(
        "the norms' epsilon", "EPS", 1e-6, r"model\.layers\.0\.input_layernorm",
        torch=("modeling_llama.py:LlamaRMSNorm.forward: hidden_states = hidden_states * torch.rsqrt(",),
    ),
    # Only the embedding's gradient shows it.
    Bug(
        "no gradient through the tied head", "head", head_without_gradient, r"lm_head|model\.embed_tokens|output",
        torch=("modeling_llama.py:LlamaForCausalLM.forward: logits = self.lm_head(hidden_states)",), stage="gradients",
    ),
)  # fmt: skip
