"""A Hugging Face GPT-2 and its port to plain JAX, with torch's names."""

import jax
import jax.numpy as jnp


def torch_side():
    import torch
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, use_cache=False)
    return GPT2Model(config).eval(), [torch.arange(16).reshape(2, 8)]


def jax_side(state_dict):
    return gpt2, {name: x.numpy() for name, x in state_dict.items()}


def gpt2(params, ids_BT):
    weight = lambda name: params[f"{name}.weight"]
    bias = lambda name: params[f"{name}.bias"]
    linear = lambda x, name: x @ weight(name) + bias(name)
    unit = lambda x: jax.nn.standardize(x, epsilon=1e-5)
    norm = lambda x, name: unit(x) * weight(name) + bias(name)
    x_BTD = weight("wte")[ids_BT] + weight("wpe")[: ids_BT.shape[1]]
    for h in ("h.0", "h.1"):
        qkv_BTF = linear(norm(x_BTD, f"{h}.ln_1"), f"{h}.attn.c_attn")
        q, k, v = jnp.split(qkv_BTF.reshape(*ids_BT.shape, 12, 8), 3, 2)
        y_BTHC = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x_BTD += linear(y_BTHC.reshape(x_BTD.shape), f"{h}.attn.c_proj")
        up_BTF = linear(norm(x_BTD, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        x_BTD += linear(jax.nn.gelu(up_BTF), f"{h}.mlp.c_proj")
    return norm(x_BTD, "ln_f")
