"""T5: encoder and decoder, relative position biases, RMS norms, a scaled and tied head; plain JAX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

from .bug import PADDING_MASK, Bug

V, D, F, H, C, L = 50, 24, 48, 3, 10, 2
B, S, T = 2, 10, 7
EPS = 1e-6
BUCKETS, MAX_DISTANCE = 8, 20


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, dict]:
    config = T5Config(
        vocab_size=V, d_model=D, d_ff=F, num_heads=H, d_kv=C, num_layers=L, relative_attention_num_buckets=BUCKETS,
        relative_attention_max_distance=MAX_DISTANCE, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    module = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim == 1:
                p.normal_(1.0, 0.2)
    rng = np.random.default_rng(seed)
    lengths_B = np.array([S, S - 3])
    return module, {
        "input_ids": rng.integers(1, V, (B, S)),
        "attention_mask": (np.arange(S) < lengths_B[:, None]).astype(np.int64),
        "decoder_input_ids": rng.integers(1, V, (B, T)),
    }


def norm(x_BTD, scale_D):
    x32_BTD = x_BTD.astype(jnp.float32)
    rms_BT1 = jnp.sqrt(jnp.square(x32_BTD).mean(-1, keepdims=True) + EPS)
    return scale_D * (x32_BTD / rms_BT1).astype(x_BTD.dtype)


def bucket(distance_TS, bidirectional):
    """Which row of the table a distance (key minus query) has: one each when near, by its logarithm when far."""
    buckets, start = BUCKETS, 0
    if bidirectional:
        buckets //= 2
        start = jnp.where(distance_TS > 0, buckets, 0)
        n_TS = jnp.abs(distance_TS)
    else:
        n_TS = jnp.maximum(-distance_TS, 0)
    near = buckets // 2
    log_TS = jnp.log(jnp.maximum(n_TS, near) / near) / np.log(MAX_DISTANCE / near)
    far_TS = jnp.minimum(near + (log_TS * (buckets - near)).astype(int), buckets - 1)
    return start + jnp.where(n_TS < near, n_TS, far_TS)


def position_bias(table, t, bidirectional):
    """(H, T, T), the same for all layers of a stack."""
    distance_TS = jnp.arange(t)[None, :] - jnp.arange(t)[:, None]
    return table[bucket(distance_TS, bidirectional)].transpose(2, 0, 1)


def scores(q_BTHC, k_BSHC):
    return jnp.einsum("bthc,bshc->bhts", q_BTHC, k_BSHC)  # T5 does not scale


def attention(x_BTD, memory_BSD, p, bias, mask):
    q_BTHC, k_BSHC, v_BSHC = x_BTD @ p["q"], memory_BSD @ p["k"], memory_BSD @ p["v"]
    q_BTHC, k_BSHC, v_BSHC = (x.reshape(*x.shape[:2], H, C) for x in (q_BTHC, k_BSHC, v_BSHC))
    scores_BHTS = jnp.where(mask, scores(q_BTHC, k_BSHC) + bias, -jnp.inf)
    y_BTHC = jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores_BHTS), v_BSHC)
    return y_BTHC.reshape(*x_BTD.shape[:2], H * C) @ p["o"]


def self_attention(x_BTD, p, bias, mask):
    normed_BTD = norm(x_BTD, p["norm"])
    return x_BTD + attention(normed_BTD, normed_BTD, p, bias, mask)


def cross_attention(x_BTD, memory_BSD, p, mask):
    return x_BTD + attention(norm(x_BTD, p["norm"]), memory_BSD, p, 0, mask)


def activation(x):
    return jax.nn.relu(x)


def mlp(x_BTD, p):
    return x_BTD + activation(norm(x_BTD, p["norm"]) @ p["up"]) @ p["down"]


def causal_mask(t):
    return jnp.tril(jnp.ones((t, t), bool))


def padding_mask(mask_BS):
    return mask_BS[:, None, None, :] > 0


def encode(p, x_BSD, mask_BS):
    bias_HSS = position_bias(p["bias"], x_BSD.shape[1], bidirectional=True)
    for block in p["blocks"]:
        x_BSD = self_attention(x_BSD, block["self"], bias_HSS, padding_mask(mask_BS))
        x_BSD = mlp(x_BSD, block["mlp"])
    return norm(x_BSD, p["norm"])


def decode(p, x_BTD, memory_BSD, mask_BS):
    t = x_BTD.shape[1]
    bias_HTT = position_bias(p["bias"], t, bidirectional=False)
    for block in p["blocks"]:
        x_BTD = self_attention(x_BTD, block["self"], bias_HTT, causal_mask(t))
        x_BTD = cross_attention(x_BTD, memory_BSD, block["cross"], padding_mask(mask_BS))
        x_BTD = mlp(x_BTD, block["mlp"])
    return norm(x_BTD, p["norm"])


def head(x_BTD, embedding_VD):
    return x_BTD * D**-0.5 @ embedding_VD.T


def t5(params: dict, input_ids: jax.Array, attention_mask: jax.Array, decoder_input_ids: jax.Array) -> dict:
    embedding_VD = params["embedding"]
    memory_BSD = encode(params["encoder"], embedding_VD[input_ids], attention_mask)
    x_BTD = decode(params["decoder"], embedding_VD[decoder_input_ids], memory_BSD, attention_mask)
    return {"logits": head(x_BTD, embedding_VD), "encoder_last_hidden_state": memory_BSD}


def jax_side(state_dict: dict) -> tuple[Callable, dict]:
    w = {name: x.detach().numpy() for name, x in state_dict.items()}

    def attention_params(layer: str, kind: str) -> dict:
        return {"norm": w[f"{layer}.layer_norm.weight"], **{x: w[f"{layer}.{kind}.{x}.weight"].T for x in "qkvo"}}

    def mlp_params(layer: str) -> dict:
        up, down = (w[f"{layer}.DenseReluDense.{x}.weight"].T for x in ("wi", "wo"))
        return {"norm": w[f"{layer}.layer_norm.weight"], "up": up, "down": down}

    def block(name: str) -> dict:
        self = attention_params(f"{name}.layer.0", "SelfAttention")
        if name.startswith("encoder"):
            return {"self": self, "mlp": mlp_params(f"{name}.layer.1")}
        cross = attention_params(f"{name}.layer.1", "EncDecAttention")
        return {"self": self, "cross": cross, "mlp": mlp_params(f"{name}.layer.2")}

    def stack(name: str) -> dict:
        return {
            "bias": w[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
            "blocks": [block(f"{name}.block.{i}") for i in range(L)],
            "norm": w[f"{name}.final_layer_norm.weight"],
        }

    return t5, {"embedding": w["shared.weight"], "encoder": stack("encoder"), "decoder": stack("decoder")}


OPTIONS: dict = {}


def layer_norm(x_BTD, scale_D):
    return scale_D * (x_BTD - x_BTD.mean(-1, keepdims=True)) / jnp.sqrt(x_BTD.var(-1, keepdims=True) + EPS)


def both_ways(table, t, bidirectional, position_bias=position_bias):
    return position_bias(table, t, bidirectional=True)


def query_minus_key(distance_TS, bidirectional, bucket=bucket):
    return bucket(-distance_TS, bidirectional)


def unmasked_cross_attention(x_BTD, memory_BSD, p, mask):
    return x_BTD + attention(norm(x_BTD, p["norm"]), memory_BSD, p, 0, True)


def normed_twice(x_BTD, memory_BSD, p, mask):
    return x_BTD + attention(norm(x_BTD, p["norm"]), norm(memory_BSD, p["norm"]), p, 0, mask)


def decode_alone(p, x_BTD, memory_BSD, mask_BS, decode=decode):
    return decode(p, x_BTD, jax.lax.stop_gradient(memory_BSD), mask_BS)


SELF = r"\.block\.0\.layer\.0\.SelfAttention.*"
CROSS = r"decoder\.block\.0\.layer\.1\.EncDecAttention.*"
KEYS_AND_VALUES = (
    "modeling_t5.py:T5Attention.forward: key_states = self.k(current_states)",
    "modeling_t5.py:T5Attention.forward: value_states = self.v(current_states)",
)
LOOKUP = "modeling_t5.py:T5Attention.compute_bias: values = self.relative_attention_bias(relative_position_bucket)"
BUGS = (
    Bug(
        "the norm takes the mean off", "norm", layer_norm, r"encoder\.block\.0\.layer\.0\.layer_norm",
        torch=(
            "modeling_t5.py:T5LayerNorm.forward: variance = hidden_states.to(torch.float32).pow(2).mean(",
            "modeling_t5.py:T5LayerNorm.forward: hidden_states = hidden_states * torch.rsqrt(",
        ),
    ),
    Bug(
        "scores scaled", "scores", lambda q, k: jnp.einsum("bthc,bshc->bhts", q, k) * C**-0.5, "encoder" + SELF,
        torch=(
            "modeling_t5.py:eager_attention_forward: attn_weights = torch.matmul(query, key",
            "modeling_t5.py:eager_attention_forward: attn_weights = attn_weights + position_bias",
        ),
    ),
    Bug(
        "distance from the key to the query", "bucket", query_minus_key, "encoder" + SELF,
        torch=(
            "modeling_t5.py:T5Attention.compute_bias: relative_position = memory_position - context_position",
            "modeling_t5.py:T5Attention._relative_position_bucket: relative_buckets += (relative_position > 0)",
            LOOKUP,
        ),
        inside=("t5.py:bucket: start = jnp.where(distance_TS > 0",),
    ),
    Bug(
        "the decoder's buckets as the encoder's", "position_bias", both_ways, "decoder" + SELF,
        torch=(
            "modeling_t5.py:T5Attention.compute_bias: relative_position_bucket = self._relative_position_bucket(",
            "modeling_t5.py:T5Attention._relative_position_bucket: relative_position = -torch.min(",
            LOOKUP,
        ),
        inside=("t5.py:bucket: start = jnp.where(distance_TS > 0", "t5.py:bucket: n_TS = jnp.abs("),
    ),
    Bug(
        "gelu for relu", "activation", jax.nn.gelu, r"encoder\.block\.0\.layer\.1\.DenseReluDense.*",
        torch=("modeling_t5.py:T5DenseActDense.forward: hidden_states = self.act(hidden_states)",),
    ),
    Bug(
        "cross-attention to padding", "cross_attention", unmasked_cross_attention, CROSS,
        torch=(
            "modeling_t5.py:eager_attention_forward: attn_weights = attn_weights + attention_mask",
            "modeling_t5.py:T5Stack.forward: encoder_extended_attention_mask = create_bidirectional_mask(",
            *PADDING_MASK,
        ),
        jax=("t5.py:attention: scores_BHTS = jnp.where(mask,",),
    ),
    Bug(
        "cross-attention norms the encoder's output again", "cross_attention", normed_twice, CROSS,
        torch=(
            *KEYS_AND_VALUES,
            "modeling_t5.py:T5LayerCrossAttention.forward: attention_output, position_bias, attn_weights = self.EncDec",
        ),
        inside=("t5.py:norm: rms_BT1 = ", "t5.py:norm: return scale_D"),
    ),
    Bug(
        "the head is not scaled", "head", lambda x_BTD, embedding_VD: x_BTD @ embedding_VD.T, "lm_head",
        torch=("modeling_t5.py:T5ForConditionalGeneration.forward: sequence_output = sequence_output * (",),
    ),
    # changes gradients only
    Bug(
        "no gradient from the decoder to the encoder", "decode", decode_alone, "output",
        torch=(
            "modeling_t5.py:T5ForConditionalGeneration.forward: decoder_outputs = self.decoder(", *KEYS_AND_VALUES,
        ),
        stage="gradients",
    ),
)  # fmt: skip
