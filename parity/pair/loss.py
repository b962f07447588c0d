"""A loss for models without one: every number of the outputs counts, each with a weight of its own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.pair.outputs import floating


class Output(NamedTuple):
    """One pair of outputs: torch's path, the port's, the transpose from the one to the other, and what counts."""

    torch: str
    jax: str
    axes: tuple[int, ...]
    weights: np.ndarray  # float64, in torch's layout


def random_weights(shape: tuple[int, ...], seed: int, where: np.ndarray | None) -> np.ndarray:
    """Normal numbers whose expected L2 norm is 1; zero where `where`, over the leading axes, is False."""
    weights = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(max(1, int(np.prod(shape))))
    if where is not None and weights.shape[: where.ndim] == where.shape:
        weights = weights * where.reshape(where.shape + (1,) * (weights.ndim - where.ndim))
    return weights


def torch_projection(outputs: list[Output], output: Any) -> torch.Tensor:
    """The sum of all outputs times their weights, in float32 or wider; what is not finite (a masked logit) is 0."""
    found = floating(output)
    parts = []
    for one in outputs:
        x = found[one.torch]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        parts.append((torch.where(torch.isfinite(x), x, 0) * torch.as_tensor(one.weights, device=x.device).to(x)).sum())
    return torch.stack(parts).sum()


def jax_projection(outputs: list[Output], output: Any) -> jax.Array:
    """The same in JAX."""
    found = floating(output)
    total = jnp.zeros(())
    for one in outputs:
        x = found[one.jax]
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        weights = one.weights.transpose(one.axes) if one.axes else one.weights
        if weights.shape == x.shape:  # else the outputs themselves are refused
            # In float64 where that is switched on, even of an output in float32, as logits often are.
            total = total + jnp.sum(jnp.where(jnp.isfinite(x), x, 0) * weights)
    return total


def size_of_terms(outputs: list[Output], found: Mapping[str, np.ndarray]) -> float:
    """||weights|| ||output||, the norm of what is added up: rounding is relative to it, however much cancels."""
    total = 0.0
    for one in outputs:
        x = np.nan_to_num(np.asarray(found[one.torch], np.float64), posinf=0, neginf=0)
        total += float(np.linalg.norm(one.weights) * np.linalg.norm(x))
    return total
