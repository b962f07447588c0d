"""GPT-2: Conv1D's kernels as they are, fused queries, keys and values, the head tied to wte; plain JAX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from .bug import CAUSAL_MASK, Bug

V, D, H, L = 50, 32, 4, 2
B, T = 2, 8
EPS = 1e-5


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, dict]:
    config = GPT2Config(
        vocab_size=V, n_embd=D, n_layer=L, n_head=H, n_positions=16, use_cache=False, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    module = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 2 and ".h." in name:
                p.mul_(10)  # so that attention is not nearly uniform, as it is at first
    return module, {"input_ids": np.random.default_rng(seed).integers(0, V, (B, T))}


def norm(x_BTD, p):
    mean_BT1 = x_BTD.mean(-1, keepdims=True)
    variance_BT1 = x_BTD.var(-1, keepdims=True)
    return (x_BTD - mean_BT1) / jnp.sqrt(variance_BT1 + EPS) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return jax.nn.gelu(x, approximate=True)


def positions(t):
    return jnp.arange(t)


def causal_mask(t):
    return jnp.tril(jnp.ones((t, t), bool))


def split_heads(qkv_BTF):
    """Queries, keys and values, each (B, H, T, C)."""
    b, t, _ = qkv_BTF.shape
    return [x.reshape(b, t, H, D // H).transpose(0, 2, 1, 3) for x in jnp.split(qkv_BTF, 3, axis=-1)]


def scores(q_BHTC, k_BHSC):
    return jnp.einsum("bhtc,bhsc->bhts", q_BHTC, k_BHSC) / jnp.sqrt(q_BHTC.shape[-1])


def attention(x_BTD, p):
    b, t, _ = x_BTD.shape
    q_BHTC, k_BHSC, v_BHSC = split_heads(linear(x_BTD, p["qkv"]))
    scores_BHTS = jnp.where(causal_mask(t), scores(q_BHTC, k_BHSC), -jnp.inf)
    y_BHTC = jax.nn.softmax(scores_BHTS, axis=-1) @ v_BHSC
    return linear(y_BHTC.transpose(0, 2, 1, 3).reshape(b, t, D), p["out"])


def block(x_BTD, p):
    x_BTD = x_BTD + attention(norm(x_BTD, p["norm_1"]), p["attention"])
    return x_BTD + linear(gelu(linear(norm(x_BTD, p["norm_2"]), p["up"])), p["down"])


def final_norm(x_BTD, p):
    return norm(x_BTD, p)


def head(x_BTD, wte_VD):
    return x_BTD @ wte_VD.T


def gpt2(params: dict, input_ids: jax.Array) -> jax.Array:
    x_BTD = params["wte"][input_ids] + params["wpe"][positions(input_ids.shape[1])]
    for p in params["blocks"]:
        x_BTD = block(x_BTD, p)
    return head(final_norm(x_BTD, params["norm"]), params["wte"])


def jax_side(state_dict: dict) -> tuple[Callable, dict]:
    w = {name.removeprefix("transformer."): x.detach().numpy() for name, x in state_dict.items()}

    def layer(name: str, kind: str = "kernel") -> dict:
        return {kind: w[f"{name}.weight"], "bias": w[f"{name}.bias"]}

    blocks = [
        {
            "norm_1": layer(f"h.{i}.ln_1", "scale"),
            "attention": {"qkv": layer(f"h.{i}.attn.c_attn"), "out": layer(f"h.{i}.attn.c_proj")},
            "norm_2": layer(f"h.{i}.ln_2", "scale"),
            "up": layer(f"h.{i}.mlp.c_fc"),
            "down": layer(f"h.{i}.mlp.c_proj"),
        }
        for i in range(L)
    ]
    return gpt2, {"wte": w["wte.weight"], "wpe": w["wpe.weight"], "blocks": blocks, "norm": layer("ln_f", "scale")}


OPTIONS: dict = {}


def heads_before_thirds(qkv_BTF):
    """The layout of GPT-NeoX: query, key and value of a head beside each other."""
    b, t, _ = qkv_BTF.shape
    return jnp.split(qkv_BTF.reshape(b, t, H, -1).transpose(0, 2, 1, 3), 3, axis=-1)


def keys_first(qkv_BTF, split=split_heads):
    k_BHSC, q_BHTC, v_BHSC = split(qkv_BTF)
    return q_BHTC, k_BHSC, v_BHSC


def without_self(t):
    return jnp.tril(jnp.ones((t, t), bool), -1).at[0, 0].set(True)


ATTENTION = r"transformer\.h\.0\.attn.*"
MASKED = "gpt2.py:attention: scores_BHTS = jnp.where(causal_mask(t),"
MASK = (
    "modeling_gpt2.py:eager_attention_forward: attn_weights = attn_weights + attention_mask",
    "modeling_gpt2.py:GPT2Model.forward: causal_mask = create_causal_mask(",
    *CAUSAL_MASK,
)
BUGS = (
    Bug(
        "Linen's epsilon in the norms", "EPS", 1e-6, r"transformer\.h\.0\.ln_1",
        torch=("modeling_gpt2.py:GPT2Block.forward: hidden_states = self.ln_1(hidden_states)",),
    ),
    Bug(
        "gelu by erf", "gelu", lambda x: jax.nn.gelu(x, approximate=False), r"transformer\.h\.0\.mlp\.act",
        torch=(
            "modeling_gpt2.py:GPT2MLP.forward: hidden_states = self.act(hidden_states)",
            "activations.py:NewGELUActivation.forward: return 0.5 * input",
        ),
    ),
    Bug(
        "positions from 1", "positions", lambda t: jnp.arange(1, t + 1), r"transformer\.(wpe|drop)",
        torch=(
            "modeling_gpt2.py:GPT2Model.forward: position_ids = torch.arange(",
            "modeling_gpt2.py:GPT2Model.forward: position_embeds = self.wpe(position_ids)",
        ),
    ),
    Bug(
        "heads split before queries, keys and values", "split_heads", heads_before_thirds, ATTENTION,
        torch=(
            "modeling_gpt2.py:GPT2Attention.forward: query_states, key_states, value_states = self.c_attn(",
            "modeling_gpt2.py:GPT2Attention.forward[2]: key_states = key_states.view(shape_kv)",
            "modeling_gpt2.py:GPT2Attention.forward[2]: value_states = value_states.view(shape_kv)",
            "modeling_gpt2.py:GPT2Attention.forward: query_states = query_states.view(shape_q)",
        ),
    ),
    Bug(
        "queries and keys exchanged", "split_heads", keys_first, ATTENTION,
        torch=(
            "modeling_gpt2.py:eager_attention_forward: attn_weights = torch.matmul(query, key",
            "modeling_gpt2.py:GPT2Attention.forward: query_states, key_states, value_states = self.c_attn(",
        ),
        jax=('gpt2.py:scores: return jnp.einsum("bhtc,bhsc->bhts"',),
    ),
    Bug(
        "scores not scaled", "scores", lambda q, k: jnp.einsum("bhtc,bhsc->bhts", q, k), ATTENTION,
        torch=("modeling_gpt2.py:eager_attention_forward: attn_weights = torch.matmul(query, key",),
        jax=(MASKED,),
    ),
    Bug(
        "each token sees those before it only", "causal_mask", without_self, ATTENTION, torch=MASK, jax=(MASKED,),
    ),
    Bug(
        "one token of the future is seen", "causal_mask", lambda t: jnp.tril(jnp.ones((t, t), bool), 1), ATTENTION,
        torch=MASK, jax=(MASKED,),
    ),
    Bug(
        "no final norm", "final_norm", lambda x_BTD, p: x_BTD, r"transformer\.ln_f",
        torch=("modeling_gpt2.py:GPT2Model.forward: hidden_states = self.ln_f(hidden_states)",),
        jax=("gpt2.py:head: return x_BTD @ wte_VD.T",),
    ),
    # changes the gradient of wte only
    Bug(
        "no gradient through the tied head", "head", lambda x, w: x @ jax.lax.stop_gradient(w).T, "output",
        torch=("modeling_gpt2.py:GPT2LMHeadModel.forward: logits = self.lm_head(hidden_states)",), stage="gradients",
    ),
)  # fmt: skip
