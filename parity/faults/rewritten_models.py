"""Models written otherwise that compute the same: the check must say nothing.

Shapes: B batch, T query time, S key time, D model, F features, H query heads, K key/value heads, C head channels, V
vocabulary.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

import jax_impl.models as models
from jax_impl import head_loss
from jax_impl.losses import IGNORE
from jax_impl.models import gpt
from jax_impl.models.attention import causal_attention
from jax_impl.models.batch_norm import BatchNorm
from jax_impl.models.blockwise import blockwise_attention
from jax_impl.models.gpt import MLP, CausalSelfAttention
from jax_impl.models.layers import Embedding, Linear
from parity.faults.fault import Fault, method, swap

make_model, rms_norm, apply_rotary = models.make_model, gpt.rms_norm, gpt.apply_rotary


def scanned(remat: bool) -> Any:
    def faulty(config: Any, axis_name: Any = None, attention: Any = causal_attention, scan_blocks: bool = False) -> Any:
        return make_model(replace(config, train=replace(config.train, remat=remat)), axis_name, attention, True)

    return swap(make_model, faulty)


def fused_qkv(
    self: Any, x_BTD: jax.Array, cos_TC: jax.Array, sin_TC: jax.Array, cache: Any = None, start: Any = 0
) -> jax.Array:
    """One product for queries, keys and values."""
    B, T, D = x_BTD.shape
    layers = self.c_q, self.c_k, self.c_v
    weight = jnp.concatenate([layer.weight[...] for layer in layers])
    ends = np.cumsum([layer.out_features for layer in layers])[:-1]
    parts = jnp.split(x_BTD @ weight.T, ends, axis=-1)
    q, k, v = (checkpoint_name(part, layer.path) for part, layer in zip(parts, layers, strict=True))
    q_BTHC, k_BTKC, v_BTKC = (part.reshape(B, T, -1, self.config.head_dim) for part in (q, k, v))
    q_BTHC = self.q(rms_norm(apply_rotary(q_BTHC, cos_TC, sin_TC)))
    k_BTKC = self.k(rms_norm(apply_rotary(k_BTKC, cos_TC, sin_TC)))
    if cache is None:
        y_BTHC = self.attention(q_BTHC, k_BTKC, v_BTKC)
    else:
        y_BTHC = gpt.cached_attention(q_BTHC, k_BTKC, v_BTKC, cache, start)
    return self.c_proj(self.y(y_BTHC.reshape(B, T, D)))


def by_einsum(self: Any, x: jax.Array) -> jax.Array:
    y = jnp.einsum("...f,of->...o", x, self.weight[...])
    return y if self.bias is None else y + self.bias[...]


def one_hot(self: Any, tokens_BT: jax.Array) -> jax.Array:
    weight_VD = self.weight[...]
    return jax.nn.one_hot(tokens_BT, weight_VD.shape[0], dtype=self.dtype) @ weight_VD


def complex_rotary(x_BTHC: jax.Array, cos_TC: jax.Array, sin_TC: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x_BTHC.dtype, cos_TC.dtype)
    x1, x2 = jnp.split(x_BTHC.astype(wide), 2, axis=-1)
    turn = jax.lax.complex(cos_TC.astype(wide), -sin_TC.astype(wide))[:, None, :]
    rotated = jax.lax.complex(x1, x2) * turn
    return jnp.concatenate([rotated.real, rotated.imag], axis=-1).astype(x_BTHC.dtype)


def softmax_by_hand(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    """The queries scaled, not the scores; exp(score - largest) over its sum, divided after the product."""
    B, T, H, C = q_BTHC.shape
    K = k_BSKC.shape[2]
    q_BTKGC = (q_BTHC / C**0.5).reshape(B, T, K, H // K, C)
    scores_BKGTS = jnp.einsum("btkgc,bskc->bkgts", q_BTKGC, k_BSKC)
    scores_BKGTS = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores_BKGTS, -jnp.inf)
    weights_BKGTS = jnp.exp(scores_BKGTS - scores_BKGTS.max(axis=-1, keepdims=True))
    y_BTKGC = jnp.einsum("bkgts,bskc->btkgc", weights_BKGTS, v_BSKC)
    return (y_BTKGC / weights_BKGTS.sum(axis=-1).transpose(0, 3, 1, 2)[..., None]).reshape(B, T, H, C)


def divided_norm(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) / x.shape[-1] + gpt.RMS_NORM_EPS)


def tanh_by_expm1(x: jax.Array, cap: float) -> jax.Array:
    grown = jnp.expm1(2 * x / cap)
    return cap * grown / (grown + 2)


def times_itself(self: Any, x_BTD: jax.Array) -> jax.Array:
    x_BTF = self.c_fc(x_BTD)
    return self.c_proj(self.relu_squared(jax.nn.relu(x_BTF) * x_BTF))


def log_softmax(logits: jax.Array, targets: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    chosen = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return jnp.where(targets == IGNORE, 0, -jnp.sum(chosen * log_probabilities, axis=-1))


def batch_norm_by_hand(self: Any, x_BF: jax.Array) -> jax.Array:
    scale, bias = self.scale[...], self.bias[...]
    if self.use_running_average:
        return (x_BF - self.mean[...]) / jnp.sqrt(self.var[...] + self.epsilon) * scale + bias
    mean_F = x_BF.mean(axis=0)
    squares_F = jnp.square(x_BF - mean_F).sum(axis=0)
    self.mean[...] += (1 - self.momentum) * (mean_F - self.mean[...])
    self.var[...] += (1 - self.momentum) * (squares_F / (x_BF.shape[0] - 1) - self.var[...])
    return (x_BF - mean_F) * (scale / jnp.sqrt(squares_F / x_BF.shape[0] + self.epsilon)) + bias


FAULTS = (
    Fault(
        "blocks in a scan",
        "gpt",
        None,
        "one loop over stacked weights for a loop in Python",
        scanned(remat=False),
        "the same blocks in the same order; the check matches iteration i to layer i",
    ),
    Fault(
        "blocks in a scan, rematerialized",
        "gpt",
        None,
        "the same with each block recomputed in the backward pass",
        scanned(remat=True),
        "the same numbers, computed twice",
    ),
    Fault(
        "fused queries, keys and values",
        "gpt",
        None,
        "one product with the three weights one below the other",
        method(CausalSelfAttention, "forward", fused_qkv),
        "each row of a product depends on its own row of the weight",
    ),
    Fault(
        "linear by einsum",
        "mlp",
        None,
        "`...f,of->...o` for a product with the transposed weight",
        method(Linear, "forward", by_einsum),
        "the same sums of products",
    ),
    Fault(
        "embedding by one-hot product",
        "embedding",
        None,
        "a product with one-hot rows for a lookup",
        method(Embedding, "forward", one_hot),
        "all terms but one are zero",
    ),
    Fault(
        "rotary as a complex product",
        "gpt",
        None,
        "(x1 + i x2) (cos - i sin)",
        swap(apply_rotary, complex_rotary),
        "real and imaginary part are the two rotated halves",
    ),
    Fault(
        "softmax by hand",
        "gpt",
        None,
        "exp(score - largest) by its sum, after the product with the values",
        swap(blockwise_attention, softmax_by_hand),
        "the sum is the same for all values of a query",
    ),
    Fault(
        "norm by a root and a division",
        "gpt",
        None,
        "x / sqrt(...) for x times rsqrt(...)",
        swap(rms_norm, divided_norm),
        "the same but for one rounding",
    ),
    Fault(
        "tanh by expm1",
        "gpt",
        None,
        "the softcap's tanh as expm1(2x) / (expm1(2x) + 2)",
        swap(gpt.softcapped, tanh_by_expm1),
        "an identity that loses no digits near zero",
    ),
    Fault(
        "relu times its argument",
        "gpt",
        None,
        "relu(x) x for relu(x)^2",
        method(MLP, "forward", times_itself),
        "equal where x is positive, and both zero elsewhere",
    ),
    Fault(
        "cross-entropy by log-softmax and one-hot",
        "embedding",
        None,
        "-sum(one_hot log_softmax), differentiated by JAX",
        swap(head_loss.one_pass_cross_entropy, log_softmax),
        "logsumexp minus the target's logit, written out",
    ),
    Fault(
        "BatchNorm by hand",
        "mlp",
        None,
        "the running values moved by a share of their distance; scale over deviation first",
        method(BatchNorm, "forward", batch_norm_by_hand),
        "the same formula in another order",
    ),
)
