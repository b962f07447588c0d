"""Faults of the GPT's other layers: linear, norms, MLP, head.

Shapes: B batch, T time, D model, V vocabulary.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

import jax_impl.models as models
from jax_impl.models import gpt
from jax_impl.models.gpt import GPT, MLP, Block
from jax_impl.models.layers import Linear
from parity.faults.fault import Fault, method, swap

rms_norm = gpt.rms_norm
linear_forward = Linear.forward


def untransposed(self: Any, x: jax.Array) -> jax.Array:
    if self.weight.shape[0] != self.weight.shape[1]:
        return linear_forward(self, x)
    return jnp.einsum("...f,fo->...o", x, self.weight[...])


def ten_bits(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)


def in_tf32(self: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("...f,of->...o", ten_bits(x), ten_bits(self.weight[...]))


def norm_with_eps(eps: float) -> Any:
    return swap(rms_norm, lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps))


def not_normalized(self: Any, tokens_BT: jax.Array) -> jax.Array:
    return self.embed_norm(self.wte(tokens_BT))


def residual_after_the_norm(self: Any, x_BTD: Any, *args: Any) -> Any:
    normed_BTD = rms_norm(x_BTD)
    x_BTD = normed_BTD + self.attn(normed_BTD, *args)
    return x_BTD + self.mlp(rms_norm(x_BTD))


def parallel_block(self: Any, x_BTD: Any, *args: Any) -> Any:
    return x_BTD + self.attn(rms_norm(x_BTD), *args) + self.mlp(rms_norm(x_BTD))


def mlp_with(activation: Any) -> Any:
    def forward(self: Any, x_BTD: jax.Array) -> jax.Array:
        return self.c_proj(self.relu_squared(activation(self.c_fc(x_BTD))))

    return method(MLP, "forward", forward)


def head_with(cap: Any = None, tied: bool = False) -> Any:
    """The head with another softcap `cap(logits, limit)`, or with the embedding's weight."""

    def head(self: Any, x_BTD: jax.Array) -> jax.Array:
        final_BTD = self.final_norm(rms_norm(x_BTD))
        if tied:
            logits_BTV = checkpoint_name(jnp.einsum("btd,vd->btv", final_BTD, self.wte.weight[...]), "lm_head")
        else:
            logits_BTV = self.lm_head(final_BTD)
        limit = self.config.softcap
        return cap(logits_BTV, limit) if cap else limit * jnp.tanh(logits_BTV / limit)

    return method(GPT, "head", head)


def cap_in_bfloat16(logits: jax.Array, limit: float) -> jax.Array:
    return (limit * jnp.tanh(logits.astype(jnp.bfloat16) / limit)).astype(logits.dtype)


def straight_through(logits: jax.Array, limit: float) -> jax.Array:
    return logits + jax.lax.stop_gradient(limit * jnp.tanh(logits / limit) - logits)


def norm_as_constant(x: jax.Array) -> jax.Array:
    mean_square = jax.lax.stop_gradient(jnp.mean(x * x, axis=-1, keepdims=True))
    return x * jax.lax.rsqrt(mean_square + gpt.RMS_NORM_EPS)


def rematerialized() -> Any:
    make_model = models.make_model
    return swap(
        make_model, lambda config, *args: make_model(replace(config, train=replace(config.train, remat=True)), *args)
    )


FAULTS = (
    Fault(
        "linear without transpose",
        "gpt",
        "activations",
        "x W for x W^T; no shape error where W is square (many ports)",
        method(Linear, "forward", untransposed),
    ),
    Fault(
        "products in TF32",
        "gpt",
        "activations",
        "the default precision of matrix products on GPUs, ten bits of mantissa (jax issues 1856, 12008, 18934)",
        method(Linear, "forward", in_tf32),
    ),
    Fault(
        "default precision on a CPU",
        "gpt",
        None,
        "jax_default_matmul_precision left at its default",
        lambda: jax.default_matmul_precision("default"),
        "a CPU multiplies float32 in float32 anyway; on GPU and TPU this is a fault",
    ),
    Fault(
        "norm with eps 1e-6",
        "gpt",
        "activations",
        "Flax's and Hugging Face's eps for torch's, which is the dtype's own (pytorch PR 173039)",
        norm_with_eps(1e-6),
    ),
    Fault(
        "no norm after the embedding",
        "gpt",
        "activations",
        "the embedding goes unnormalized into the first block",
        method(GPT, "embed", not_normalized),
    ),
    Fault(
        "residual after the norm",
        "gpt",
        "activations",
        "the residual adds to the normalized input instead of the input",
        method(Block, "forward", residual_after_the_norm),
    ),
    Fault(
        "attention and MLP in parallel",
        "gpt",
        "activations",
        "both read the block's input, as in GPT-J",
        method(Block, "forward", parallel_block),
    ),
    Fault("relu not squared", "gpt", "activations", "the square is forgotten", mlp_with(jax.nn.relu)),
    Fault("gelu for relu squared", "gpt", "activations", "the usual activation of a GPT", mlp_with(jax.nn.gelu)),
    Fault(
        "maximum for relu, squared",
        "gpt",
        None,
        "maximum(x, 0), whose gradient at a tie is one half (jax issue 37821)",
        mlp_with(lambda x: jnp.square(jnp.maximum(x, 0))),
        "the square's derivative is 0 at a tie",
    ),
    Fault(
        "softcap of 30",
        "gpt",
        "activations",
        "another model's limit",
        head_with(lambda logits, limit: 2 * limit * jnp.tanh(logits / (2 * limit))),
    ),
    Fault(
        "softcap in bfloat16",
        "gpt",
        "activations",
        "logits rounded to eight bits (nanochat cbf30c8)",
        head_with(cap_in_bfloat16),
    ),
    Fault("tied head", "gpt", "activations", "the embedding's weight serves as the head's", head_with(tied=True)),
    Fault(
        "softcap straight through",
        "gpt",
        "gradients",
        "the forward pass caps the logits, the backward pass ignores the cap",
        head_with(straight_through),
    ),
    Fault(
        "norm treated as a constant",
        "gpt",
        "gradients",
        "no gradient through the root mean square",
        swap(rms_norm, norm_as_constant),
    ),
    Fault(
        "rematerialized",
        "gpt",
        None,
        "blocks recomputed in the backward pass",
        rematerialized(),
        "the same numbers, computed twice",
    ),
)
