"""Whisper: convolutions over the spectrogram, an encoder, a decoder that attends to it; plain JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import WhisperConfig, WhisperModel

from tests.parity.ports.bug import SDPA, Bug

LAYERS, HEADS, WIDTH = 2, 4, 16
EPS = 1e-5
PADDING: Any = ((1, 1),)

OPTIONS: dict[str, Any] = {}


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=50,
        num_mel_bins=6,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=8,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.3,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = WhisperModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") and "norm" not in name:
                weight.normal_(0, 0.2)
    rng = np.random.default_rng(seed)
    sound_BFT = rng.standard_normal((2, 6, 16)).astype(np.float32)
    return model, {"input_features": sound_BFT, "decoder_input_ids": rng.integers(1, 50, (2, 7))}


def jax_side(state_dict: dict[str, torch.Tensor]) -> tuple[Callable, Any]:
    tensors = {name: tensor.detach().numpy() for name, tensor in state_dict.items()}

    def dense_params(name: str) -> dict[str, np.ndarray]:
        params = {"kernel": tensors[f"{name}.weight"].T}
        return params if name.endswith("k_proj") else {**params, "bias": tensors[f"{name}.bias"]}

    def norm_params(name: str) -> dict[str, np.ndarray]:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def conv_params(name: str) -> dict[str, np.ndarray]:
        return {"kernel": tensors[f"{name}.weight"].transpose(2, 1, 0), "bias": tensors[f"{name}.bias"]}

    def layer_params(name: str, attentions: tuple[str, ...]) -> dict[str, Any]:
        params: dict[str, Any] = {
            "up": dense_params(f"{name}.fc1"),
            "down": dense_params(f"{name}.fc2"),
            "mlp_norm": norm_params(f"{name}.final_layer_norm"),
        }
        for kind in attentions:
            params[kind] = {part: dense_params(f"{name}.{kind}.{part}_proj") for part in ("q", "k", "v", "out")}
            params[f"{kind}_norm"] = norm_params(f"{name}.{kind}_layer_norm")
        return params

    encoder = {
        "conv1": conv_params("encoder.conv1"),
        "conv2": conv_params("encoder.conv2"),
        "positions": tensors["encoder.embed_positions.weight"],
        "layers": [layer_params(f"encoder.layers.{i}", ("self_attn",)) for i in range(LAYERS)],
        "norm": norm_params("encoder.layer_norm"),
    }
    decoder = {
        "embedding": tensors["decoder.embed_tokens.weight"],
        "positions": tensors["decoder.embed_positions.weight"],
        "layers": [layer_params(f"decoder.layers.{i}", ("self_attn", "encoder_attn")) for i in range(LAYERS)],
        "norm": norm_params("decoder.layer_norm"),
    }
    return forward, {"encoder": encoder, "decoder": decoder}


def forward(params: Any, input_features: jax.Array, decoder_input_ids: jax.Array) -> dict[str, jax.Array]:
    heard_BSD = encode(params["encoder"], input_features)
    said_BTD = decode(params["decoder"], decoder_input_ids, for_decoder(heard_BSD))
    return {"last_hidden_state": said_BTD, "encoder_last_hidden_state": heard_BSD}


def encode(params: Any, sound_BFT: jax.Array) -> jax.Array:
    x_BTD = gelu(conv(sound_BFT.swapaxes(1, 2), params["conv1"], stride=1))
    x_BSD = gelu(conv(x_BTD, params["conv2"], stride=2)) + jax.lax.stop_gradient(params["positions"])
    for w in params["layers"]:
        normed_BSD = norm(x_BSD, w["self_attn_norm"])
        x_BSD = x_BSD + attention(normed_BSD, normed_BSD, w["self_attn"])
        x_BSD = x_BSD + mlp(norm(x_BSD, w["mlp_norm"]), w)
    return norm(x_BSD, params["norm"])


def decode(params: Any, ids_BT: jax.Array, heard_BSD: jax.Array) -> jax.Array:
    length = ids_BT.shape[1]
    x_BTD = jnp.asarray(params["embedding"])[ids_BT] + jnp.asarray(params["positions"])[positions(length)]
    for w in params["layers"]:
        normed_BTD = norm(x_BTD, w["self_attn_norm"])
        x_BTD = x_BTD + attention(normed_BTD, normed_BTD, w["self_attn"], causal(length))
        x_BTD = cross(x_BTD, heard_BSD, w)
        x_BTD = x_BTD + mlp(norm(x_BTD, w["mlp_norm"]), w)
    return norm(x_BTD, params["norm"])


def for_decoder(heard_BSD: jax.Array) -> jax.Array:
    return heard_BSD


def cross(x_BTD: jax.Array, heard_BSD: jax.Array, w: Any) -> jax.Array:
    return x_BTD + attention(norm(x_BTD, w["encoder_attn_norm"]), heard_BSD, w["encoder_attn"])


def attention(x_BTD: jax.Array, source_BSD: jax.Array, w: Any, mask_TS: Any = True) -> jax.Array:
    q_BTHC = split_heads(scaled(dense(x_BTD, w["q"])))
    k_BSHC = split_heads(dense(source_BSD, w["k"]))
    v_BSHC = split_heads(dense(source_BSD, w["v"]))
    scores_BHTS = jnp.where(mask_TS, jnp.einsum("bthc,bshc->bhts", q_BTHC, k_BSHC), -jnp.inf)
    y_BTHC = jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores_BHTS), v_BSHC)
    return dense(y_BTHC.reshape(x_BTD.shape), w["out"])


def split_heads(x_BTD: jax.Array) -> jax.Array:
    return x_BTD.reshape(*x_BTD.shape[:2], HEADS, WIDTH // HEADS)


def scaled(q_BTD: jax.Array) -> jax.Array:
    return q_BTD * (WIDTH // HEADS) ** -0.5


def causal(length: int) -> jax.Array:
    return jnp.tril(jnp.ones((length, length), bool))


def positions(length: int) -> jax.Array:
    return jnp.arange(length)


def mlp(x_BTD: jax.Array, w: Any) -> jax.Array:
    return dense(gelu(dense(x_BTD, w["up"])), w["down"])


def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def dense(x: jax.Array, w: Any) -> jax.Array:
    return x @ w["kernel"] + w.get("bias", 0)


def conv(x_BTD: jax.Array, w: Any, stride: int) -> jax.Array:
    layouts = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x_BTD, w["kernel"], (stride,), PADDING, dimension_numbers=layouts) + w["bias"]


def norm(x_BTD: jax.Array, w: Any) -> jax.Array:
    mean, var = jnp.mean(x_BTD, -1, keepdims=True), jnp.var(x_BTD, -1, keepdims=True)
    return (x_BTD - mean) * jax.lax.rsqrt(var + EPS) * w["scale"] + w["bias"]


def split_channels_first(x_BTD: jax.Array) -> jax.Array:
    return x_BTD.reshape(*x_BTD.shape[:2], WIDTH // HEADS, HEADS).swapaxes(2, 3)


def cross_without_norm(x_BTD: jax.Array, heard_BSD: jax.Array, w: Any) -> jax.Array:
    return x_BTD + attention(x_BTD, heard_BSD, w["encoder_attn"])


def cross_without_residual(x_BTD: jax.Array, heard_BSD: jax.Array, w: Any) -> jax.Array:
    return attention(norm(x_BTD, w["encoder_attn_norm"]), heard_BSD, w["encoder_attn"])


FIRST = r"encoder\.layers\.0\.self_attn.*"
CROSS = r"decoder\.layers\.0"
KEYS_AND_VALUES = (
    "modeling_whisper.py:WhisperAttention.forward: key_states = self.k_proj(current_states)",
    "modeling_whisper.py:WhisperAttention.forward: value_states = self.v_proj(current_states)",
)
QUERIES = "modeling_whisper.py:WhisperAttention.forward: query_states = (self.q_proj(hidden_states) * self.scaling)"
SCORES = "whisper.py:attention: scores_BHTS = jnp.where(mask_TS,"
BUGS = (
    Bug(
        "SAME padding, which at stride 2 pads less on the left", "PADDING", "SAME", r"encoder\.conv2",
        torch=("modeling_whisper.py:WhisperEncoder.forward: inputs_embeds = nn.functional.gelu(self.conv2(",),
    ),
    Bug(
        "the heads split channels first", "split_heads", split_channels_first, FIRST,
        torch=(QUERIES, *KEYS_AND_VALUES),
    ),
    Bug("the queries not scaled", "scaled", lambda q_BTD: q_BTD, FIRST, torch=(QUERIES,), jax=(SCORES,)),
    Bug(
        "relu for gelu", "gelu", jax.nn.relu, r"encoder(\.conv[12])?",
        torch=("modeling_whisper.py:WhisperEncoder.forward: inputs_embeds = nn.functional.gelu(self.conv1(",),
    ),
    Bug(
        "positions begin at 2, as BART's", "positions", lambda length: jnp.arange(length) + 2, r"decoder\.embed_.*",
        torch=(
            "modeling_whisper.py:WhisperDecoder.forward: position_ids = torch.arange(",
            "modeling_whisper.py:WhisperDecoder.forward: positions = self.embed_positions(input_ids,",
            "modeling_whisper.py:WhisperPositionalEmbedding.forward: return self.weight[position_ids]",
        ),
    ),
    Bug(
        "the decoder sees the future", "causal", lambda _: True, rf"{CROSS}\.self_attn.*",
        torch=(SDPA, "modeling_whisper.py:WhisperAttention.forward: attn_output, attn_weights = attention_interface("),
        jax=(SCORES,),
    ),
    Bug(
        "cross-attention without its norm", "cross", cross_without_norm, rf"{CROSS}\.encoder_attn.*",
        torch=("modeling_whisper.py:WhisperDecoderLayer.forward: hidden_states = self.encoder_attn_layer_norm(",),
        inside=('whisper.py:dense: return x @ w["kernel"]',),
    ),
    Bug(
        "cross-attention without its residual", "cross", cross_without_residual,
        rf"{CROSS}|{CROSS}\.final_layer_norm",
        torch=("modeling_whisper.py:WhisperDecoderLayer.forward[2]: hidden_states = residual + hidden_states",),
        jax=("whisper.py:decode: x_BTD = cross(", "whisper.py:decode: x_BTD = x_BTD + mlp("),
        inside=("whisper.py:norm: mean, var = ", "whisper.py:norm: return (x_BTD - mean)"),
    ),
    # Only gradients show it.
    Bug(
        "no gradient into the encoder", "for_decoder", jax.lax.stop_gradient, r"encoder(\.layer_norm)?",
        torch=("modeling_whisper.py:WhisperModel.forward: decoder_outputs = self.decoder(", *KEYS_AND_VALUES),
        stage="gradients",
    ),
)  # fmt: skip
