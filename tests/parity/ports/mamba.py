"""Mamba: the selective scan as a scan over time, the convolution as a sum of shifts; plain JAX.

Beside the usual letters: F inner width, N state, R rank of the time step, J taps of the convolution.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.nn import silu, softplus
from transformers import MambaConfig, MambaForCausalLM

from tests.parity.ports.bug import Bug

LAYERS, STATE, RANK = 2, 4, 3
EPS = 1e-5

OPTIONS: dict[str, Any] = {}


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    torch.manual_seed(seed)
    config = MambaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=LAYERS,
        state_size=STATE,
        time_step_rank=RANK,
        time_step_min=0.1,
        time_step_max=1.0,
        conv_kernel=4,
        layer_norm_epsilon=EPS,
        initializer_range=0.4,
        tie_word_embeddings=False,
        use_cache=False,
    )
    model = MambaForCausalLM(config).eval()
    with torch.no_grad():
        model.backbone.embeddings.weight *= 0.1
        for layer in model.backbone.layers:
            layer.mixer.conv1d.bias.uniform_(-0.5, 0.5)
    return model, {"input_ids": np.random.default_rng(seed).integers(0, 50, (2, 8))}


def jax_side(state_dict: dict[str, torch.Tensor]) -> tuple[Callable, Any]:
    tensors = {name: tensor.detach().numpy() for name, tensor in state_dict.items()}
    params = {
        "embedding": tensors["backbone.embeddings.weight"],
        "layers": [layer_params(tensors, f"backbone.layers.{i}.") for i in range(LAYERS)],
        "norm": tensors["backbone.norm_f.weight"],
        "head": tensors["lm_head.weight"].T,
    }
    return forward, params


def layer_params(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    mixer = f"{prefix}mixer."
    x_DF, gate_DF = np.split(tensors[f"{mixer}in_proj.weight"].T, 2, axis=1)
    return {
        "norm": tensors[f"{prefix}norm.weight"],
        "x": x_DF,
        "gate": gate_DF,
        "conv": tensors[f"{mixer}conv1d.weight"][:, 0].T,
        "conv_bias": tensors[f"{mixer}conv1d.bias"],
        "select": tensors[f"{mixer}x_proj.weight"].T,
        "dt": tensors[f"{mixer}dt_proj.weight"].T,
        "dt_bias": tensors[f"{mixer}dt_proj.bias"],
        "A_log": tensors[f"{mixer}A_log"],
        "D": tensors[f"{mixer}D"],
        "out": tensors[f"{mixer}out_proj.weight"].T,
    }


def forward(params: Any, input_ids: jax.Array) -> jax.Array:
    x_BTD = jnp.asarray(params["embedding"])[input_ids]
    for w in params["layers"]:
        x_BTD = x_BTD + mix(norm(x_BTD, w["norm"]), w)
    return head(x_BTD, params)


def mix(x_BTD: jax.Array, w: Any) -> jax.Array:
    x_BTF = silu(convolve(x_BTD @ w["x"], w["conv"]) + w["conv_bias"])
    dt_BTR, in_BTN, out_BTN = split(x_BTF @ w["select"])
    y_BTF = selective_scan(x_BTF, time_step(dt_BTR, w), decay(w["A_log"]), in_BTN, out_BTN)
    return gate(skip(y_BTF, x_BTF, w["D"]), x_BTD @ w["gate"]) @ w["out"]


def convolve(x_BTF: jax.Array, kernel_JF: jax.Array) -> jax.Array:
    """Each channel by itself; the last tap is the present."""
    taps, length = kernel_JF.shape[0], x_BTF.shape[1]
    padded = jnp.pad(x_BTF, ((0, 0), (taps - 1, 0), (0, 0)))
    return sum(padded[:, j : j + length] * kernel_JF[j] for j in range(taps))


def split(x: jax.Array) -> list[jax.Array]:
    return jnp.split(x, (RANK, RANK + STATE), -1)


def time_step(dt_BTR: jax.Array, w: Any) -> jax.Array:
    return softplus(dt_BTR @ w["dt"] + w["dt_bias"])


def decay(A_log_FN: jax.Array) -> jax.Array:
    return -jnp.exp(jnp.asarray(A_log_FN, jnp.float32))


def selective_scan(
    x_BTF: jax.Array, dt_BTF: jax.Array, A_FN: jax.Array, in_BTN: jax.Array, out_BTN: jax.Array
) -> jax.Array:
    def step(state_BFN: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        x_BF, dt_BF, in_BN, out_BN = now
        new_BFN = jnp.exp(dt_BF[..., None] * A_FN) * state_BFN + (dt_BF * x_BF)[..., None] * in_BN[:, None]
        return new_BFN, read(state_BFN, new_BFN, out_BN)

    over_time = [x.swapaxes(0, 1) for x in (x_BTF, dt_BTF, in_BTN, out_BTN)]
    state_BFN = jnp.zeros((x_BTF.shape[0], *A_FN.shape), x_BTF.dtype)
    return jax.lax.scan(step, state_BFN, over_time)[1].swapaxes(0, 1)


def read(old_BFN: jax.Array, new_BFN: jax.Array, out_BN: jax.Array) -> jax.Array:
    return jnp.einsum("bfn,bn->bf", new_BFN, out_BN)


def skip(y_BTF: jax.Array, x_BTF: jax.Array, D_F: jax.Array) -> jax.Array:
    return y_BTF + x_BTF * D_F


def gate(y_BTF: jax.Array, gate_BTF: jax.Array) -> jax.Array:
    return y_BTF * silu(gate_BTF)


def norm(x_BTD: jax.Array, weight_D: jax.Array) -> jax.Array:
    wide_BTD = x_BTD.astype(jnp.float32)
    mean_square_BT1 = jnp.mean(wide_BTD**2, -1, keepdims=True)
    return weight_D * (wide_BTD * jax.lax.rsqrt(mean_square_BT1 + EPS)).astype(x_BTD.dtype)


def head(x_BTD: jax.Array, params: Any) -> jax.Array:
    return norm(x_BTD, params["norm"]) @ params["head"]


def convolve_flipped(x_BTF: jax.Array, kernel_JF: jax.Array) -> jax.Array:
    taps, length = kernel_JF.shape[0], x_BTF.shape[1]
    padded = jnp.pad(x_BTF, ((0, 0), (taps - 1, 0), (0, 0)))
    return sum(padded[:, j : j + length] * kernel_JF[taps - 1 - j] for j in range(taps))


def convolve_centred(x_BTF: jax.Array, kernel_JF: jax.Array) -> jax.Array:
    taps, length = kernel_JF.shape[0], x_BTF.shape[1]
    padded = jnp.pad(x_BTF, ((0, 0), (taps // 2, taps // 2), (0, 0)))
    return sum(padded[:, j : j + length] * kernel_JF[j] for j in range(taps))


def split_exchanged(x: jax.Array) -> list[jax.Array]:
    dt_BTR, in_BTN, out_BTN = jnp.split(x, (RANK, RANK + STATE), -1)
    return [dt_BTR, out_BTN, in_BTN]


MIXER = r"backbone\.layers\.0\.mixer"
BUGS = (
    Bug(
        "the convolution's kernel flipped", "convolve", convolve_flipped, rf"{MIXER}(\.conv1d|\.x_proj)?",
        torch=("modeling_mamba.py:causal_conv1d_fn: out = F.conv1d(",),
    ),
    Bug(
        "the convolution centred: it sees the future", "convolve", convolve_centred,
        rf"{MIXER}(\.conv1d|\.x_proj)?",
        torch=("modeling_mamba.py:causal_conv1d_fn: out = F.conv1d(",),
    ),
    Bug(
        "the bias of the time step missing", "time_step", lambda dt_BTR, w: softplus(dt_BTR @ w["dt"]), MIXER,
        torch=("modeling_mamba.py:mamba_selective_scan: dt = dt + delta_bias",),
    ),
    Bug(
        "B and C exchanged", "split", split_exchanged, rf"{MIXER}(\.out_proj)?",
        torch=(
            "modeling_mamba.py:MambaMixer.forward: time_step, B, C = torch.split(",
            "modeling_mamba.py:mamba_selective_scan: discrete_B = dt[:, :, :, None] * B",
            "modeling_mamba.py:mamba_selective_scan: deltaB_u = discrete_B * hidden_states",
        ),
        jax=("mamba.py:selective_scan: new_BFN = jnp.exp(",),
    ),
    Bug(
        "the state read before its update", "read", lambda old, _, out: jnp.einsum("bfn,bn->bf", old, out), MIXER,
        torch=("modeling_mamba.py:mamba_selective_scan: scan_output = torch.matmul(ssm_state",),
    ),
    Bug(
        "the skip D missing", "skip", lambda y_BTF, x_BTF, D_F: y_BTF, rf"{MIXER}(\.out_proj)?",
        torch=("modeling_mamba.py:mamba_selective_scan: scan_output = scan_output + hidden_states * D",),
        jax=("mamba.py:gate: return y_BTF * silu(",),
    ),
    Bug(
        "the gate without silu", "gate", lambda y_BTF, gate_BTF: y_BTF * gate_BTF, rf"{MIXER}(\.out_proj)?",
        torch=("modeling_mamba.py:mamba_selective_scan: scan_output = scan_output * F.silu(z)",),
    ),
    Bug(
        "the norms' epsilon", "EPS", 1e-6, r"backbone\.layers\.0\.norm",
        torch=("modeling_mamba.py:MambaRMSNorm.forward: hidden_states = hidden_states * torch.rsqrt(",),
    ),
    # Only gradients show it.
    Bug(
        "no gradient through A", "decay", lambda A_log: -jnp.exp(jax.lax.stop_gradient(jnp.asarray(A_log))), MIXER,
        torch=("modeling_mamba.py:MambaMixer.forward: A = -torch.exp(self.A_log",), stage="gradients",
    ),
)  # fmt: skip
