"""Mixtral: every expert computed for every token in one einsum, top 2 chosen by their weights; plain JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.nn import silu
from transformers import MixtralConfig, MixtralForCausalLM

from tests.parity.ports.bug import SDPA, SILU, Bug

LAYERS, HEADS, KEY_HEADS, WIDTH, EXPERTS = 2, 4, 2, 16, 4
TOP_K = 2
BASE = 1e6
EPS = 1e-5

OPTIONS: dict[str, Any] = {}


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
        initializer_range=0.3,
        use_cache=False,
        attn_implementation="sdpa",
        experts_implementation="eager",
    )
    model = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight *= 0.1
    return model, {"input_ids": np.random.default_rng(seed).integers(3, 50, (2, 8))}


def jax_side(state_dict: dict[str, torch.Tensor]) -> tuple[Callable, Any]:
    tensors = {name.removeprefix("model."): tensor.detach().numpy() for name, tensor in state_dict.items()}
    params = {
        "embedding": tensors["embed_tokens.weight"],
        "layers": [layer_params(tensors, f"layers.{i}.") for i in range(LAYERS)],
        "norm": tensors["norm.weight"],
        "head": tensors["lm_head.weight"].T,
    }
    return forward, params


def layer_params(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    per_head, groups = WIDTH // HEADS, HEADS // KEY_HEADS
    q, k, v, o = (tensors[f"{prefix}self_attn.{name}_proj.weight"].T for name in "qkvo")
    gate_EFD, up_EFD = np.split(tensors[f"{prefix}mlp.experts.gate_up_proj"], 2, axis=1)
    return {
        "attention_norm": tensors[f"{prefix}input_layernorm.weight"],
        "q": q.reshape(WIDTH, KEY_HEADS, groups, per_head),
        "k": k.reshape(WIDTH, KEY_HEADS, per_head),
        "v": v.reshape(WIDTH, KEY_HEADS, per_head),
        "o": o.reshape(KEY_HEADS, groups, per_head, WIDTH),
        "experts_norm": tensors[f"{prefix}post_attention_layernorm.weight"],
        "router": tensors[f"{prefix}mlp.gate.weight"].T,
        "gate": gate_EFD.swapaxes(1, 2),
        "up": up_EFD.swapaxes(1, 2),
        "down": tensors[f"{prefix}mlp.experts.down_proj"].swapaxes(1, 2),
    }


def forward(params: Any, input_ids: jax.Array) -> jax.Array:
    x_BTD = jnp.asarray(params["embedding"])[input_ids]
    for w in params["layers"]:
        x_BTD = x_BTD + attention(norm(x_BTD, w["attention_norm"]), w)
        normed_BTD = norm(x_BTD, w["experts_norm"])
        x_BTD = x_BTD + mixture(normed_BTD, route(normed_BTD, w["router"]), w)
    return head(x_BTD, params)


def attention(x_BTD: jax.Array, w: Any) -> jax.Array:
    length, per_head = x_BTD.shape[1], WIDTH // HEADS
    q_BTKGC = rotate(jnp.einsum("btd,dkgc->btkgc", x_BTD, w["q"]))
    k_BSKC = rotate(jnp.einsum("bsd,dkc->bskc", x_BTD, w["k"]))
    v_BSKC = jnp.einsum("bsd,dkc->bskc", x_BTD, w["v"])
    scores_BKGTS = jnp.einsum("btkgc,bskc->bkgts", q_BTKGC, k_BSKC) * per_head**-0.5
    scores_BKGTS = jnp.where(causal(length), scores_BKGTS, -jnp.inf)
    return jnp.einsum("bkgts,bskc,kgcd->btd", jax.nn.softmax(scores_BKGTS), v_BSKC, w["o"])


def causal(length: int) -> jax.Array:
    return jnp.tril(jnp.ones((length, length), bool))


def rotate(x: jax.Array) -> jax.Array:
    """Rotary by halves; time is the second axis of x, head channels are the last."""
    per_head = x.shape[-1]
    frequencies = BASE ** (-jnp.arange(0, per_head, 2, dtype=jnp.float32) / per_head)
    angles_TC = jnp.arange(x.shape[1])[:, None] * frequencies
    angles = jnp.expand_dims(angles_TC, tuple(range(1, x.ndim - 2)))
    first, second = jnp.split(x, 2, -1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def route(x_BTD: jax.Array, router_DE: jax.Array) -> jax.Array:
    """The weight of each expert for each token, zero for those not chosen."""
    shares_BTE = jax.nn.softmax((x_BTD @ router_DE).astype(jnp.float32))
    top, chosen = jax.lax.top_k(shares_BTE, TOP_K)
    return per_expert(top / jnp.sum(top, -1, keepdims=True), chosen)


def per_expert(top: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.sum(top[..., None] * jax.nn.one_hot(chosen, EXPERTS, dtype=top.dtype), -2)


def mixture(x_BTD: jax.Array, weights_BTE: jax.Array, w: Any) -> jax.Array:
    hidden_BTEF = gated(jnp.einsum("btd,edf->btef", x_BTD, w["gate"]), jnp.einsum("btd,edf->btef", x_BTD, w["up"]))
    return jnp.einsum("btef,efd,bte->btd", hidden_BTEF, w["down"], weights_BTE.astype(x_BTD.dtype))


def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return silu(gate) * up


def norm(x_BTD: jax.Array, weight_D: jax.Array) -> jax.Array:
    wide_BTD = x_BTD.astype(jnp.float32)
    mean_square_BT1 = jnp.mean(wide_BTD**2, -1, keepdims=True)
    return weight_D * (wide_BTD * jax.lax.rsqrt(mean_square_BT1 + EPS)).astype(x_BTD.dtype)


def head(x_BTD: jax.Array, params: Any) -> jax.Array:
    return norm(x_BTD, params["norm"]) @ params["head"]


def causal_one_further(length: int) -> jax.Array:
    return jnp.tril(jnp.ones((length, length), bool), 1)


def route_not_normalized(x_BTD: jax.Array, router_DE: jax.Array) -> jax.Array:
    return per_expert(*jax.lax.top_k(jax.nn.softmax(x_BTD @ router_DE), TOP_K))


def route_without_gradient(x_BTD: jax.Array, router_DE: jax.Array) -> jax.Array:
    shares_BTE = jax.lax.stop_gradient(jax.nn.softmax(x_BTD @ router_DE))
    top, chosen = jax.lax.top_k(shares_BTE, TOP_K)
    return per_expert(top / jnp.sum(top, -1, keepdims=True), chosen)


def mixture_weighted_first(x_BTD: jax.Array, weights_BTE: jax.Array, w: Any) -> jax.Array:
    x_BTED = x_BTD[:, :, None] * weights_BTE[..., None]
    hidden_BTEF = gated(jnp.einsum("bted,edf->btef", x_BTED, w["gate"]), jnp.einsum("bted,edf->btef", x_BTED, w["up"]))
    return jnp.einsum("btef,efd->btd", hidden_BTEF, w["down"])


ATTENTION = r"model\.layers\.0\.self_attn.*"
EXPERT = r"model\.layers\.0\.mlp(\.experts.*)?"
GATED = ("modeling_mixtral.py:MixtralExperts.forward: current_hidden_states = self.act_fn(gate) * up", SILU)
BUGS = (
    Bug(
        "the weights of the chosen experts not normalized", "route", route_not_normalized,
        r"model\.layers\.0\.mlp.*",
        torch=("modeling_mixtral.py:MixtralTopKRouter.forward: router_top_value /= router_top_value.sum(",),
        jax=("mixtral.py:per_expert: return jnp.sum(",),
    ),
    Bug(
        "only the first expert", "TOP_K", 1, r"model\.layers\.0\.mlp.*",
        torch=("modeling_mixtral.py:MixtralTopKRouter.forward: router_top_value, router_indices = torch.topk(",),
    ),
    Bug(
        "the tokens weighted before the experts", "mixture", mixture_weighted_first, EXPERT,
        torch=(
            "modeling_mixtral.py:MixtralExperts.forward: current_hidden_states = current_hidden_states * top_k_weights",
            "modeling_mixtral.py:MixtralExperts.forward: gate, up = nn.functional.linear(current_state",
        ),
    ),
    Bug("gate and up exchanged", "gated", lambda gate, up: gate * silu(up), EXPERT, torch=GATED),
    Bug(
        "gelu for silu", "gated", lambda gate, up: jax.nn.gelu(gate, approximate=False) * up, EXPERT, torch=GATED,
    ),
    Bug(
        "the rotary base of Llama", "BASE", 1e4, rf"model\.rotary_emb|{ATTENTION}",
        torch=(
            "modeling_mixtral.py:MixtralRotaryEmbedding.forward: freqs = position_ids[..., None].float() * ",
            "modeling_mixtral.py:MixtralRotaryEmbedding.compute_default_rope_parameters: inv_freq = 1.0 / (base",
        ),
    ),
    Bug(
        "the causal mask lets one token too many through", "causal", causal_one_further, ATTENTION,
        torch=(SDPA, "modeling_mixtral.py:MixtralAttention.forward: attn_output, attn_weights = attention_interface("),
        jax=("mixtral.py:attention: scores_BKGTS = jnp.where(causal(length)",),
    ),
    Bug(
        "the final norm missing", "head", lambda x_BTD, params: x_BTD @ params["head"], r"model\.norm",
        torch=(
            "modeling_mixtral.py:MixtralModel.forward: hidden_states = self.norm(hidden_states)",
            "modeling_mixtral.py:MixtralRMSNorm.forward: variance = hidden_states.pow(2).mean(",
        ),
    ),
    # Only gradients show it.
    Bug(
        "no gradient through the router", "route", route_without_gradient, r"model\.layers\.\d\.mlp.*",
        torch=("modeling_mixtral.py:MixtralTopKRouter.forward: router_probs = torch.nn.functional.softmax(",),
        stage="gradients",
    ),
)  # fmt: skip
