"""Dropout: the masks that torch draws, replayed where the port draws its own.

Every mask of torch's is a `bernoulli_` (of `nn.Dropout`, attention, an LSTM, stochastic depth), every one of Flax's,
Haiku's and Equinox's a `jax.random.bernoulli`: both are counted in the order in which they are drawn.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from parity.entries import GIVEN, Key
from parity.jax_internals import TRACING
from parity.ledger import Ledger


class Mask(NamedTuple):
    """One mask of torch's: True where a number is kept, and the probability of that."""

    kept: np.ndarray
    keep: float


class Draw(NamedTuple):
    """One that the port draws. keep: None where it is no constant."""

    shape: tuple[int, ...]
    keep: float | None


@contextmanager
def drawing(bernoulli: Callable[..., Any]) -> Iterator[None]:
    """Within it the port draws by this function; what JAX has traced before is traced anew."""
    with mock.patch.object(jax.random, "bernoulli", bernoulli), TRACING(object()):
        yield


def draws_of(function: Callable[..., Any], *args: Any) -> list[Draw]:
    """The masks that a function of JAX's draws, in order; nothing is computed."""
    draws: list[Draw] = []
    own = jax.random.bernoulli

    def bernoulli(key: Any, p: Any = 0.5, shape: Any = None, *rest: Any, **kwargs: Any) -> Any:
        known = None if isinstance(p, jax.core.Tracer) or np.ndim(p) else float(p)
        draws.append(Draw(shape_of(p, shape), known))
        return own(key, p, shape, *rest, **kwargs)

    with drawing(bernoulli):
        jax.eval_shape(function, *args)
    return draws


def shape_of(p: Any, shape: Any) -> tuple[int, ...]:
    """Of what `jax.random.bernoulli` returns."""
    return np.shape(p) if shape is None else tuple(shape)


@contextmanager
def replayed(masks: Sequence[Any]) -> Iterator[None]:
    """Within it the port draws these, in its own layout. Raises TypeError where it draws more or fewer."""
    if not masks:
        yield
        return
    rest = iter(masks)

    def bernoulli(key: Any, p: Any = 0.5, shape: Any = None, *_: Any, **__: Any) -> Any:
        mask = next(rest, None)
        if mask is None:
            raise TypeError(f"the port draws more than the {len(masks)} masks that torch draws")
        return laid_out(jax.numpy.asarray(mask), shape_of(p, shape))

    with drawing(bernoulli):
        yield
    if next(rest, None) is not None:
        raise TypeError(f"the port draws fewer than the {len(masks)} masks that torch draws")


def layouts(ours: tuple[int, ...], theirs: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The permutations that give the port's shape."""
    if sorted(ours) != sorted(theirs):
        return []
    return [axes for axes in itertools.permutations(range(len(ours))) if tuple(ours[i] for i in axes) == theirs]


def laid_out(mask: Any, shape: tuple[int, ...]) -> Any:
    """torch's mask in the port's shape, which `misfit` found to fit: as it is, or transposed."""
    return mask if mask.shape == shape else mask.transpose(layouts(mask.shape, shape)[0])


def fitting(ledger: Ledger, masks: Sequence[Mask], draws: Sequence[Draw], notes: list[str]) -> tuple[Mask, ...]:
    """torch's masks where the port can be given them; none where it draws others, and a note says why.

    Another probability is a divergence of the port's.
    """
    if not masks or not draws:
        return ()
    if reason := misfit(masks, draws):
        notes.append(f"Masks drawn at random could not be replayed: {reason}.")
        return ()
    for number, (mask, draw) in enumerate(zip(masks, draws, strict=True)):
        if draw.keep is not None and abs(draw.keep - mask.keep) > 1e-6:
            key = Key("activations", f"dropout {number}", GIVEN, "dropout")
            ledger.refuse(key, 0, f"it keeps {mask.keep:g} of the numbers in torch, {draw.keep:g} in JAX")
    notes.append(f"torch's {len(masks)} masks of dropout were replayed in the port, in the order of its own.")
    return tuple(masks)


def misfit(masks: Sequence[Mask], draws: Sequence[Draw]) -> str:
    """Why the port cannot be given these; "" if it can."""
    if len(masks) != len(draws):
        return f"torch draws {len(masks)} and the port {len(draws)} (one in a scan or a vmap counts once)"
    for number, (mask, draw) in enumerate(zip(masks, draws, strict=True)):
        ours, found = mask.kept.shape, layouts(mask.kept.shape, draw.shape)
        several = ours != draw.shape and len({mask.kept.transpose(axes).tobytes() for axes in found}) > 1
        if several or not found:
            return f"number {number} has shape {ours} in torch, {draw.shape} in the port"
    return ""
