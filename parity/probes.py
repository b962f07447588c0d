"""Probes in the port's optimizer: it keeps in its state the gradients that it is given, where the check reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_impl import optimizer, step
from parity.moments import group_of
from parity.side import Named
from twinstep.config import Config

OBSERVED = "observed"


class Observed(NamedTuple):
    """The last gradients that a probe has seen, a tree like the parameters."""

    observed: Any


class Kept(NamedTuple):
    """The state of `keep_gradients`: the gradients before and after clipping around the optimizer's own state."""

    before: Observed
    inner: Any
    after: Observed


def observe() -> optax.GradientTransformation:
    """Passes gradients on unchanged and keeps the last ones in its state."""
    return optax.GradientTransformation(
        lambda params: Observed(jax.tree.map(jnp.zeros_like, params)),
        lambda grads, state, params=None: (grads, Observed(grads)),
    )


def probing_optimizer(config: Config, params: Any, *stacks: Any) -> optax.GradientTransformation:
    """jax_impl's optimizer, which keeps the gradients before and after clipping, and those that each group receives.

    stacks: what `jax_impl.parallel.muon_stacks` gives.
    """
    make_transform = optimizer.make_transform

    def observed_transform(config: Config, group: optimizer.Group, *rest: Any) -> optax.GradientTransformation:
        return optax.chain(observe(), make_transform(config, group, *rest))

    with mock.patch.object(optimizer, "make_transform", observed_transform):
        return keep_gradients(optimizer.make_optimizer(config, params, *stacks))


def keep_gradients(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer for what the step hands it within `probing_clip`: both gradients, of which it uses the clipped."""

    def init(params: Any) -> Kept:
        before, after = (Observed(jax.tree.map(jnp.zeros_like, params)) for _ in range(2))
        return Kept(before, inner.init(params), after)

    def update(given: tuple[Any, Any], state: Kept, params: Any = None) -> tuple[Any, Kept]:
        before, clipped = given
        updates, inner_state = inner.update(clipped, state.inner, params)
        return updates, Kept(Observed(before), inner_state, Observed(clipped))

    return optax.GradientTransformation(init, update)


@contextmanager
def probing_clip() -> Iterator[None]:
    """Within it the step's clipping hands on both gradients, before and after, to a `probing_optimizer`."""
    clip = step.clip_by_global_norm

    def both(grads: Any, max_norm: float) -> tuple[tuple[Any, Any], jax.Array]:
        clipped, norm = clip(grads, max_norm)
        return (grads, clipped), norm

    with mock.patch.object(step, "clip_by_global_norm", both):
        yield


def probe_names(opt_state: Any) -> dict[int, str]:
    """What the probes' leaves hold: "before/parameter", "after/parameter", or "received/parameter" by its group."""
    names = {}
    for number, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(opt_state)):
        fields = [getattr(entry, "name", "") for entry in path]
        if OBSERVED in fields:
            keys = [str(entry.key) for entry in path[fields.index(OBSERVED) + 1 :]]
            kind = "received" if group_of(path) else fields[0]
            names[number] = f"{kind}/{'.'.join(keys)}"
    return names


def observed_gradients(opt_state: Any) -> tuple[Named, Named]:
    """Gradients before clipping; and after it, as a group receives them where it tells."""
    before, after = kept_gradients(opt_state)
    return tuple({name: np.asarray(x) for name, x in one.items()} for one in (before, after))  # type: ignore[return-value]


def kept_gradients(opt_state: Any) -> tuple[Named, Named]:
    """The same as JAX's arrays; traceable."""
    leaves = jax.tree.leaves(opt_state)
    seen: dict[str, Named] = {"before": {}, "after": {}, "received": {}}
    for number, name in probe_names(opt_state).items():
        kind, _, parameter = name.partition("/")
        seen[kind][parameter] = leaves[number]
    return seen["before"], seen["after"] | seen["received"]
