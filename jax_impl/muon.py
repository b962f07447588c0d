"""Muon: momentum, orthogonalized by Newton-Schulz (Keller Jordan, https://kellerjordan.github.io/posts/muon).

Shapes: N matrices of one shape stacked, M rows, K columns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; chosen for a steep slope at zero
EPS = 1e-7  # added to the Frobenius norm

# (function of a stack, stack (N, M, K)) -> function(stack), computed where it may please.
Spread = Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]


def on_every_device(function: Callable[[jax.Array], jax.Array], stacked_NMK: jax.Array) -> jax.Array:
    """Each device works on the whole stack."""
    return function(stacked_NMK)


class MuonState(NamedTuple):
    """What Muon remembers."""

    count: Any  # steps taken, int32; typed loosely, since a tuple's own `count` is a method
    momentum: Any  # tree like the parameters


def orthogonalize(x_NMK: jax.Array, steps: int, dtype: jnp.dtype) -> jax.Array:
    """Push the singular values of each matrix towards 1, into about [0.7, 1.2]; computed and returned in `dtype`.

    Each iteration is X <- a X + (b A + c A^2) X with A = X X^T, on the wide orientation, where A is smaller.
    """
    a, b, c = COEFFICIENTS
    x_NMK = x_NMK.astype(dtype)
    tall = x_NMK.shape[-2] > x_NMK.shape[-1]
    if tall:
        x_NMK = x_NMK.mT
    x_NMK = x_NMK / (jnp.linalg.norm(x_NMK, axis=(-2, -1), keepdims=True) + EPS)
    for _ in range(steps):
        # The barrier keeps XLA from folding the transpose into the product, which on a CPU is then a quarter slower.
        a_NMM = x_NMK @ jax.lax.optimization_barrier(x_NMK.mT)
        x_NMK = a * x_NMK + (b * a_NMM + c * (a_NMM @ a_NMM)) @ x_NMK
    return x_NMK.mT if tall else x_NMK


def shape_scale(shape: tuple[int, ...]) -> float:
    """max(1, rows/columns)^1/2: a tall matrix (out > in) takes larger steps."""
    return max(1.0, shape[-2] / shape[-1]) ** 0.5


def orthogonalize_tree(updates: Any, steps: int, dtype: jnp.dtype, spread: Spread = on_every_device) -> Any:
    """`orthogonalize` times `shape_scale` for every (M, K) leaf; leaves of one shape are stacked into one product."""
    leaves, treedef = jax.tree.flatten(updates)
    done: list[Any] = [None] * len(leaves)
    for shape in sorted({leaf.shape for leaf in leaves}):
        at = [i for i, leaf in enumerate(leaves) if leaf.shape == shape]
        stacked_NMK = jnp.stack([leaves[i].astype(dtype) for i in at])
        stacked_NMK = spread(lambda x_NMK: orthogonalize(x_NMK, steps, dtype), stacked_NMK)
        for n, i in enumerate(at):
            done[i] = shape_scale(shape) * stacked_NMK[n].astype(leaves[i].dtype)
    return jax.tree.unflatten(treedef, done)


def muon(
    learning_rate: optax.Schedule,
    momentum: optax.Schedule,
    weight_decay: optax.Schedule,
    *,
    steps: int,
    dtype: jnp.dtype,
    spread: Spread = on_every_device,
) -> optax.GradientTransformation:
    """Nesterov momentum as an EMA without bias correction, orthogonalized, with decoupled decay.

    m <- mu m + (1 - mu) g;  u = mu m + (1 - mu) g;  p <- p - lr (scale * orthogonalize(u) + wd p)
    spread: how a stack of matrices is divided among devices.
    Source: karpathy/nanochat, nanochat/muon.py. optax.contrib.muon differs: it corrects the momentum's bias.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        if params is None:
            raise ValueError("muon decays the parameters: pass params to update")
        mu, lr, decay = momentum(state.count), learning_rate(state.count), weight_decay(state.count)

        def mix(m, g):
            weight = jnp.asarray(mu, g.dtype)
            return weight * m + (1 - weight) * g

        buffers = jax.tree.map(mix, state.momentum, grads)
        directions = orthogonalize_tree(jax.tree.map(mix, buffers, grads), steps, dtype, spread)
        updates = jax.tree.map(
            lambda o, p: -jnp.asarray(lr, p.dtype) * (o + jnp.asarray(decay, p.dtype) * p), directions, params
        )
        return updates, MuonState(optax.safe_increment(state.count), buffers)

    return optax.GradientTransformation(init, update)
