"""Faults of the head's loss in chunks of a sequence, which large logits are computed in.

Shapes: B batch, T time, D model.
"""

from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from jax_impl import head_loss
from parity.faults.fault import Fault

chunks_forward = head_loss._chunks_forward

# More than 2^24 logits in a micro-step, of an odd length, so that the last of the two chunks is padded.
LARGE = (
    "--vocab-size 65536 --sequence-len 273 --batch-size 1 --accumulation 1 --depth 1 --d-model 16 --head-dim 8 "
    "--kv-heads 1 --steps 3 --eval-batches 1"
)


def chunked(forward: Any) -> Any:
    """The chunked loss with another forward pass, `forward(head, softcap, chunks, weights, x, targets)`."""
    loss = partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))(head_loss.chunked_loss.fun)
    loss.defvjp(forward, head_loss._chunks_backward)
    return lambda: mock.patch.object(head_loss, "chunked_loss", loss)


def padding_counted(head: Any, softcap: Any, chunks: int, weights: Any, x_BTD: Any, targets_BT: Any) -> Any:
    """The padding of the last chunk has class 0 as its target."""
    T = x_BTD.shape[1]
    padding = ((0, 0), (0, -T % chunks))
    padded = jnp.pad(x_BTD, (*padding, (0, 0))), jnp.pad(targets_BT, padding)
    sums, (dweights, dx_BTD) = chunks_forward(head, softcap, chunks, weights, *padded)
    return sums, (dweights, dx_BTD[:, :T])


def last_chunk_alone(head: Any, softcap: Any, chunks: int, weights: Any, x_BTD: Any, targets_BT: Any) -> Any:
    """The head's gradient is that of the last chunk: each takes the place of the one before."""
    sums, (_, dx_BTD) = chunks_forward(head, softcap, chunks, weights, x_BTD, targets_BT)
    start = -(-x_BTD.shape[1] // chunks) * (chunks - 1)
    rest = x_BTD[:, start:], targets_BT[:, start:]
    _, (dweights, _) = chunks_forward(head, softcap, 1, weights, *rest)
    return sums, (dweights, dx_BTD)


def first_chunk_detached(head: Any, softcap: Any, chunks: int, weights: Any, x_BTD: Any, targets_BT: Any) -> Any:
    """What leaves the last block gets no gradient from the first chunk."""
    sums, (dweights, dx_BTD) = chunks_forward(head, softcap, chunks, weights, x_BTD, targets_BT)
    return sums, (dweights, dx_BTD.at[:, : -(-x_BTD.shape[1] // chunks)].set(0))


def mean_of_chunks(head: Any, softcap: Any, chunks: int, weights: Any, x_BTD: Any, targets_BT: Any) -> Any:
    sums, (dweights, dx_BTD) = chunks_forward(head, softcap, chunks, weights, x_BTD, targets_BT)
    return sums._replace(nats=sums.nats / chunks), (dweights, dx_BTD)


def cap_left_out() -> Any:
    """The gradient of the capped logits, not of those before the cap."""

    def backward(softcap: float, saved: Any, dnats: jax.Array) -> Any:
        raw, targets, largest, total = saved
        return head_loss._dlogits(head_loss.softcapped(raw, softcap), targets, largest, total, dnats), None

    loss = partial(jax.custom_vjp, nondiff_argnums=(2,))(head_loss.capped_cross_entropy.fun)
    loss.defvjp(head_loss._capped_forward, backward)
    return mock.patch.object(head_loss, "capped_cross_entropy", loss)


FAULTS = (
    Fault(
        "chunk's padding counted",
        "gpt",
        "loss",
        "the padding of the last chunk has targets that count",
        chunked(padding_counted),
        flags=LARGE,
    ),
    Fault(
        "mean over chunks",
        "gpt",
        "loss",
        "the chunks' sums are averaged",
        chunked(mean_of_chunks),
        flags=LARGE,
    ),
    Fault(
        "one chunk's gradient of the head",
        "gpt",
        "gradients",
        "each chunk's gradient of the head's weight takes the place of the one before",
        chunked(last_chunk_alone),
        flags=LARGE,
    ),
    Fault(
        "a chunk without gradient",
        "gpt",
        "gradients",
        "the blocks get no gradient from the first chunk",
        chunked(first_chunk_detached),
        flags=LARGE,
    ),
    Fault(
        "chunks' gradient without the softcap",
        "gpt",
        "gradients",
        "the derivative of tanh is left out of the gradient written by hand",
        cap_left_out,
        flags=LARGE,
    ),
)
