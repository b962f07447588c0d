"""Muon: momentum, orthogonalized by Newton-Schulz (Keller Jordan, https://kellerjordan.github.io/posts/muon).

Shapes: R rows, Q columns, `...` leading axes of stacked matrices.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jax_impl.stacks import map_stacks

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; chosen for a steep slope at zero
EPS = 1e-7  # added to the Frobenius norm


def orthogonalize(x_RQ: jax.Array, steps: int, dtype: jnp.dtype) -> jax.Array:
    """Push the singular values of each matrix (..., R, Q) towards 1, into about [0.7, 1.2]; computed in `dtype`.

    Each iteration is X <- a X + (b A + c A^2) X with A = X X^T, on the wide orientation, where A is smaller.
    """
    a, b, c = COEFFICIENTS
    x_RQ = x_RQ.astype(dtype)
    tall = x_RQ.shape[-2] > x_RQ.shape[-1]
    if tall:
        x_RQ = x_RQ.mT
    x_RQ = x_RQ / (jnp.linalg.norm(x_RQ, axis=(-2, -1), keepdims=True) + EPS)
    for _ in range(steps):
        a_RR = x_RQ @ x_RQ.mT
        x_RQ = a * x_RQ + (b * a_RR + c * (a_RR @ a_RR)) @ x_RQ
    return x_RQ.mT if tall else x_RQ


def shape_scale(shape: tuple[int, ...]) -> float:
    """max(1, rows/columns)^1/2: a tall matrix (out > in) takes larger steps."""
    return max(1.0, shape[-2] / shape[-1]) ** 0.5


def orthogonalize_tree(
    updates: Any, steps: int, dtype: jnp.dtype, stacked: bool = False, mesh: Mesh | None = None
) -> Any:
    """`orthogonalize` times `shape_scale` for every (R, Q) leaf, in the leaf's dtype.

    stacked: all matrices of one shape in one product, which is faster everywhere but on a CPU. mesh: the devices over
    which the stacks are sharded; see `stacks.py`.
    """
    # Under a jit of its own it is traced once for each shape, not for each matrix.
    push = jax.jit(partial(orthogonalize, steps=steps, dtype=dtype))
    cast = jax.tree.map(lambda u: u.astype(dtype), updates)  # first, so that devices exchange the narrower dtype
    directions = map_stacks(push, cast, mesh) if stacked else jax.tree.map(push, cast)
    return jax.tree.map(lambda o, u: shape_scale(u.shape) * o.astype(u.dtype), directions, updates)


class MuonState(NamedTuple):
    """What Muon keeps from step to step."""

    count: Any  # steps taken, int32; typed loosely, since a tuple's own `count` is a method
    momentum: Any  # a tree like the parameters


def muon(
    learning_rate: optax.Schedule,
    momentum: optax.Schedule,
    weight_decay: optax.Schedule,
    *,
    steps: int,
    dtype: jnp.dtype,
    stacked: bool = False,
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    """Nesterov momentum as an EMA without bias correction, orthogonalized, with decoupled weight decay.

    m <- mu m + (1 - mu) g;  u = mu m + (1 - mu) g;  p <- p - lr (scale * orthogonalize(u) + wd p)
    Source: karpathy/nanochat, nanochat/muon.py. optax.contrib.muon differs: it corrects the momentum's bias.
    steps, dtype, stacked, mesh: see `orthogonalize_tree`. The update raises ValueError without parameters.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        if params is None:
            raise ValueError("muon decays the parameters: pass params to update")
        mu, lr, decay = momentum(state.count), learning_rate(state.count), weight_decay(state.count)

        def lerp(m: jax.Array, g: jax.Array) -> jax.Array:
            weight = jnp.asarray(mu, g.dtype)
            return weight * m + (1 - weight) * g

        buffers = jax.tree.map(lerp, state.momentum, grads)
        directions = orthogonalize_tree(jax.tree.map(lerp, buffers, grads), steps, dtype, stacked, mesh)
        updates = jax.tree.map(
            lambda o, p: -jnp.asarray(lr, p.dtype) * (o + jnp.asarray(decay, p.dtype) * p), directions, params
        )
        return updates, MuonState(optax.safe_increment(state.count), buffers)

    return optax.GradientTransformation(init, update)
