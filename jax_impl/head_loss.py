"""The summed loss of a language model from its last hidden state, in pieces that never hold all logits.

Logits (B, T, V), their softcap, softmax and gradients are a training step's largest arrays by far once V is large.
Here a piece of T meets the head, gives its sums and at once its gradients, and its logits are gone before the next.

Shapes: B batch, T time, D model, V vocabulary, P pieces, t time of a piece.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jax_impl.losses import IGNORE, Sums, loss_sums
from twinstep.config import Config, GPTConfig
from twinstep.resolve import sequence_len, units_per_step

# A piece has as many logits as this (64 MB in float32), or an eighth of all: each adds a gradient of the size of the
# head's weight, which must stay small beside the piece's own work.
SMALLEST_PIECE = 2**24
MOST_PIECES = 8

Head = Callable[[Any, jax.Array], jax.Array]  # (weights, x (B, T, D)) -> logits (B, T, V)


def count_pieces(tokens: int, length: int, vocab_size: int) -> int:
    """P for B T tokens in sequences of T; 1 where the logits are few enough to be made at once."""
    pieces = -(-tokens * vocab_size // SMALLEST_PIECE)
    return min(pieces, MOST_PIECES, length)


def large_logits(config: Config) -> bool:
    """Whether a micro-step's logits are made in pieces, on one device; the configuration's sizes are filled in."""
    if not isinstance(config.model, GPTConfig):
        return False
    assert config.model.vocab_size is not None
    tokens = units_per_step(config) // config.train.accumulation
    return count_pieces(tokens, sequence_len(config), config.model.vocab_size) > 1


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def head_loss(head: Head, pieces: int, weights: Any, x_BTD: jax.Array, targets_BT: jax.Array) -> Sums:
    """`loss_sums` of the head's logits. Differentiable in `nats`, with respect to `weights` and `x`.

    Only its derivative goes in pieces: it is what keeps the logits.
    """
    return loss_sums(head(weights, x_BTD), targets_BT)


def _forward(head: Head, pieces: int, weights: Any, x_BTD: jax.Array, targets_BT: jax.Array):
    """The sums and, since they are linear in their own cotangent, the gradients of `nats` already."""
    B, T, D = x_BTD.shape
    t = -(-T // pieces)
    beyond = ((0, 0), (0, pieces * t - T))
    x_PBtD = jnp.pad(x_BTD, (*beyond, (0, 0))).reshape(B, pieces, t, D).swapaxes(0, 1)
    targets_PBt = jnp.pad(targets_BT, beyond, constant_values=IGNORE).reshape(B, pieces, t).swapaxes(0, 1)

    def piece(x_BtD: jax.Array, targets_Bt: jax.Array) -> tuple[Sums, Any, jax.Array]:
        def nats(weights: Any, x_BtD: jax.Array) -> tuple[jax.Array, Sums]:
            sums = loss_sums(head(weights, x_BtD), targets_Bt)
            return sums.nats, sums

        (dweights, dx_BtD), sums = jax.grad(nats, argnums=(0, 1), has_aux=True)(weights, x_BtD)
        return sums, dweights, dx_BtD

    def add_piece(totals: tuple[Sums, Any], part: tuple[jax.Array, jax.Array]):
        sums, dweights, dx_BtD = piece(*part)
        return jax.tree.map(jnp.add, totals, (sums, dweights)), dx_BtD

    shapes = jax.eval_shape(piece, x_PBtD[0], targets_PBt[0])[:2]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (sums, dweights), dx_PBtD = jax.lax.scan(add_piece, zeros, (x_PBtD, targets_PBt))
    return sums, (dweights, dx_PBtD.swapaxes(0, 1).reshape(B, pieces * t, D)[:, :T])


def _backward(head: Head, pieces: int, gradients: tuple[Any, jax.Array], dsums: Sums):
    dweights, dx_BTD = jax.tree.map(lambda g: dsums.nats.astype(g.dtype) * g, gradients)
    return dweights, dx_BTD, None


head_loss.defvjp(_forward, _backward)
