"""Muon: momentum, orthogonalized by Newton-Schulz (Keller Jordan, https://kellerjordan.github.io/posts/muon).

Shapes: N matrices of one shape stacked, or none; M rows, K columns.
"""

import functools
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
        a_NMM = x_NMK @ x_NMK.mT
        x_NMK = a * x_NMK + (b * a_NMM + c * (a_NMM @ a_NMM)) @ x_NMK
    return x_NMK.mT if tall else x_NMK


def shape_scale(shape: tuple[int, ...]) -> float:
    """max(1, rows/columns)^1/2: a tall matrix (out > in) takes larger steps."""
    return max(1.0, shape[-2] / shape[-1]) ** 0.5


def orthogonalize_tree(updates: Any, steps: int, dtype: jnp.dtype, spread: Spread | None = None) -> Any:
    """`orthogonalize` times `shape_scale` for every (M, K) leaf, in the leaf's type.

    spread: takes all matrices of one shape in a stack, and divides it among devices or not. Without it none are
    stacked, which is faster on a CPU: its products of a stack are slower than those of the matrices one by one.
    """
    push = functools.partial(orthogonalize, steps=steps, dtype=dtype)
    cast = jax.tree.map(lambda u: u.astype(dtype), updates)  # first, so that devices exchange the narrower type
    directions = jax.tree.map(push, cast) if spread is None else by_stacks(functools.partial(spread, push), cast)
    return jax.tree.map(lambda o, u: shape_scale(u.shape) * o.astype(u.dtype), directions, updates)


def by_stacks(function: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    """A tree of matrices through a function of stacks, of all matrices of one shape each."""
    leaves, treedef = jax.tree.flatten(tree)
    done: list[Any] = [None] * len(leaves)
    for shape in sorted({leaf.shape for leaf in leaves}):
        at = [i for i, leaf in enumerate(leaves) if leaf.shape == shape]
        for i, leaf in zip(at, function(jnp.stack([leaves[i] for i in at])), strict=True):
            done[i] = leaf
    return jax.tree.unflatten(treedef, done)


def muon(
    learning_rate: optax.Schedule,
    momentum: optax.Schedule,
    weight_decay: optax.Schedule,
    *,
    steps: int,
    dtype: jnp.dtype,
    spread: Spread | None = None,
) -> optax.GradientTransformation:
    """Nesterov momentum as an EMA without bias correction, orthogonalized, with decoupled decay.

    m <- mu m + (1 - mu) g;  u = mu m + (1 - mu) g;  p <- p - lr (scale * orthogonalize(u) + wd p)
    spread: see `orthogonalize_tree`.
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
