"""Faults of Muon."""

from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jax_impl import muon as ours
from jax_impl import optimizer
from jax_impl.muon import MuonState, orthogonalize, orthogonalize_tree, shape_scale
from jax_impl.schedule import decay_multiplier, lr_multiplier
from parity.faults.fault import Fault, swap
from twinstep.config import Config

make_transform = optimizer.make_transform


def muon_with(buffer: Any = None, direction: Any = None, update: Any = None, counted: int = 1, shift: int = 0) -> Any:
    """Muon with another momentum `buffer(mu, m, g)`, `direction(mu, m, g)` or `update(o, p, lr, decay)`, or count."""

    def decayed(o: jax.Array, p: jax.Array, lr: Any, decay: Any) -> jax.Array:
        return -lr * (o + decay * p)

    def ema(mu: Any, m: jax.Array, g: jax.Array) -> jax.Array:
        return mu * m + (1 - mu) * g

    def faulty(
        learning_rate: Any, momentum: Any, weight_decay: Any, *, steps: int, dtype: Any, **layout: Any
    ) -> optax.GradientTransformation:
        def apply(grads: Any, state: MuonState, params: Any = None) -> Any:
            mu, lr, decay = momentum(state.count + shift), learning_rate(state.count), weight_decay(state.count)
            buffers = jax.tree.map(lambda m, g: (buffer or ema)(mu, m, g), state.momentum, grads)
            directions = jax.tree.map(lambda m, g: (direction or ema)(mu, m, g), buffers, grads)
            orthogonalized = orthogonalize_tree(directions, steps, dtype, **layout)
            updates = jax.tree.map(lambda o, p: (update or decayed)(o, p, lr, decay), orthogonalized, params)
            return updates, MuonState(state.count + counted, buffers)

        def init(params: Any) -> MuonState:
            return MuonState(jnp.int32(0), jax.tree.map(jnp.zeros_like, params))

        return optax.GradientTransformation(init, apply)

    return swap(ours.muon, faulty)


def cautious(o: jax.Array, p: jax.Array, lr: Any, decay: Any) -> jax.Array:
    return -lr * (o + jnp.where(o * p >= 0, decay * p, 0))


def shrunk_together(o: jax.Array, p: jax.Array, lr: Any, decay: Any) -> jax.Array:
    return (p - lr * o) * (1 - lr * decay) - p


def with_eps_in_the_root(x_RQ: jax.Array, steps: int, dtype: jnp.dtype) -> jax.Array:
    squares = jnp.sum(jnp.square(x_RQ), axis=(-2, -1), keepdims=True)
    return orthogonalize(x_RQ / jnp.sqrt(squares + ours.EPS), steps, dtype)


def other_iterations(config: Config, *args: Any) -> optax.GradientTransformation:
    return make_transform(replace(config, optimizer=replace(config.optimizer, newton_schulz_steps=4)), *args)


def from_optax(config: Config, group: Any, *args: Any) -> optax.GradientTransformation:
    """optax.contrib's momentum and orthogonalization under our own scale, decay and rate, and in our own state."""
    if group.algorithm != "muon":
        return make_transform(config, group, *args)
    o, steps = config.optimizer, config.train.steps

    def all_matrices(updates: Any) -> Any:
        return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), updates)

    theirs = contrib.scale_by_muon(
        beta=o.momentum_start, ns_steps=o.newton_schulz_steps, weight_dimension_numbers=all_matrices
    )

    def update(grads: Any, state: MuonState, params: Any = None) -> Any:
        their_state = theirs.init(grads)._replace(count=state.count, mu=state.momentum)
        updates, after = theirs.update(grads, their_state)
        updates = jax.tree.map(lambda u: shape_scale(u.shape) * u, updates)
        return updates, MuonState(after.count, after.mu)

    return optax.chain(
        optax.GradientTransformation(
            lambda params: MuonState(jnp.int32(0), jax.tree.map(jnp.zeros_like, params)), update
        ),
        optax.add_decayed_weights(lambda count: group.weight_decay * decay_multiplier(o, steps, count)),
        optax.scale_by_learning_rate(lambda count: group.learning_rate * lr_multiplier(o, steps, count)),
    )


def stacking() -> Any:
    make_optimizer = optimizer.make_optimizer
    return swap(make_optimizer, lambda config, params, *_: make_optimizer(config, params, stacked=True))


FAULTS = (
    Fault(
        "optax.contrib's Muon",
        "embedding",
        "update",
        "bias-corrected momentum: hidden at the first step, where a scale of the momentum changes nothing but the eps",
        swap(make_transform, from_optax),
        flags="--momentum-start 0.9 --momentum-end 0.9",
    ),
    Fault(
        "no Nesterov",
        "embedding",
        "update",
        "the momentum alone is orthogonalized",
        muon_with(direction=lambda mu, m, g: m),
    ),
    Fault(
        "momentum not an average",
        "mlp",
        "update",
        "m = mu m + g, torch.optim.SGD's momentum",
        muon_with(buffer=lambda mu, m, g: mu * m + g),
    ),
    Fault(
        "momentum not applied",
        "linear",
        "update",
        "the gradient itself is orthogonalized",
        muon_with(direction=lambda mu, m, g: g),
    ),
    Fault(
        "steps counted twice",
        "embedding",
        "update",
        "the count goes up by two, once per micro-step",
        muon_with(counted=2),
    ),
    Fault(
        "Newton-Schulz in bfloat16",
        "embedding",
        "update",
        "the orthogonalization rounds to eight bits (keras PR 21885)",
        swap(optimizer.newton_schulz_dtype, lambda config: jnp.dtype("bfloat16")),
    ),
    Fault("four iterations", "mlp", "update", "one Newton-Schulz step too few", swap(make_transform, other_iterations)),
    Fault(
        "no shape scale",
        "gpt",
        "update",
        "tall matrices get the step of wide ones",
        swap(shape_scale, lambda shape: 1.0),
    ),
    Fault(
        "shape scale transposed",
        "embedding",
        "update",
        "columns over rows: the other framework's orientation",
        swap(shape_scale, lambda shape: max(1.0, shape[-1] / shape[-2]) ** 0.5),
    ),
    Fault(
        "other coefficients",
        "linear",
        "update",
        "the cubic's 1.5 and -0.5 for the quintic's",
        lambda: mock.patch.object(ours, "COEFFICIENTS", (1.5, -0.5, 0.0)),
    ),
    Fault(
        "eps in Muon's root",
        "embedding",
        "update",
        "the Frobenius norm as sqrt(sum + eps)",
        swap(ours.orthogonalize, with_eps_in_the_root),
    ),
    Fault(
        "scale of 0.2 sqrt(max)",
        "linear",
        "update",
        "Moonshot's scale, which matches AdamW's step",
        swap(shape_scale, lambda shape: 0.2 * max(shape[-2:]) ** 0.5),
    ),
    Fault(
        "momentum warmed up from the next step",
        "mlp",
        "update",
        "the count goes up before the momentum is read",
        muon_with(shift=1),
    ),
    Fault(
        "decay only where it agrees with the update",
        "embedding",
        "update",
        "cautious decay, a newer recipe's",
        muon_with(update=cautious),
    ),
    Fault(
        "decay after the update",
        "mlp",
        "update",
        "the new parameters shrink, and with them what was just added",
        muon_with(update=shrunk_together),
    ),
    Fault(
        "matrices in stacks",
        "gpt",
        None,
        "all matrices of one shape in one product",
        stacking(),
        "each matrix's products are the same, alone or stacked",
    ),
)
