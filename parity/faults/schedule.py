"""Faults of rates, decay and momentum over the run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jax_impl import optimizer, schedule
from jax_impl.optimizer import Group
from parity.faults.fault import Fault, swap
from twinstep.config import Config, OptimizerConfig

lr_multiplier, muon_momentum = schedule.lr_multiplier, schedule.muon_momentum


def from_zero(config: OptimizerConfig, steps: int, step: Any) -> Any:
    warmup = round(config.warmup_fraction * steps)
    return jnp.where(step < warmup, jnp.asarray(step, float) / max(warmup, 1), lr_multiplier(config, steps, step))


def with_fields(**fields: float) -> Any:
    """The schedule of another configuration."""
    return swap(lr_multiplier, lambda config, steps, step: lr_multiplier(replace(config, **fields), steps, step))


def in_micro_steps(config: OptimizerConfig, steps: int, step: Any) -> Any:
    warmup = round(config.warmup_fraction * steps)
    step = jnp.asarray(step)
    return lr_multiplier(config, steps, jnp.where(step < warmup, jnp.minimum(2 * step + 1, warmup), step))


def cosine(config: OptimizerConfig, steps: int, step: Any) -> Any:
    final = config.final_lr_fraction
    line = lr_multiplier(config, steps, step)
    left = (line - final) / (1 - final)
    curved = final + (1 - final) * (1 - jnp.cos(jnp.pi * left)) / 2
    return jnp.where(jnp.asarray(step) > steps - round(config.warmdown_fraction * steps), curved, line)


def altered_groups(change: Callable[[Config, str, Group], Group]) -> Any:
    optimizer_groups = optimizer.optimizer_groups

    def faulty(config: Config) -> dict[str, Group]:
        return {label: change(config, label, group) for label, group in optimizer_groups(config).items()}

    return swap(optimizer_groups, faulty)


def without_width_scale(config: Config, label: str, group: Group) -> Group:
    scale = (config.model.width / 768) ** 0.5  # type: ignore[union-attr]
    return group._replace(learning_rate=group.learning_rate * scale) if label in ("embedding", "head") else group


def without_decay(config: Config, label: str, group: Group) -> Group:
    return group._replace(weight_decay=0.0)


def with_optax_decay(config: Config, label: str, group: Group) -> Group:
    return group._replace(weight_decay=1e-4 if group.weight_decay else 0.0)


def with_decayed_vectors(config: Config, label: str, group: Group) -> Group:
    return group._replace(weight_decay=config.optimizer.weight_decay)


FAULTS = (
    Fault(
        "warm-up from zero",
        "embedding",
        "schedule",
        "the first step has rate 0 instead of 1/n (torchtitan PR 1261, optax PR 1744)",
        swap(lr_multiplier, from_zero),
    ),
    Fault(
        "schedule one step early",
        "linear",
        "schedule",
        "count/(steps - 1) instead of count/steps (torchtitan PR 1261)",
        swap(lr_multiplier, lambda config, steps, step: lr_multiplier(config, steps - 1, step)),
    ),
    Fault(
        "schedule backwards",
        "embedding",
        "schedule",
        "the run ends where it should begin (nanochat issue 68)",
        swap(lr_multiplier, lambda config, steps, step: lr_multiplier(config, steps, steps - 1 - step)),
    ),
    Fault(
        "momentum not warmed up",
        "embedding",
        "schedule",
        "Muon's momentum at its final value from the first step",
        swap(schedule.muon_momentum, lambda config, step: jnp.full(jnp.shape(step), config.momentum_end, float)),
    ),
    Fault(
        "decay not scheduled",
        "mlp",
        "schedule",
        "the decay stays at its peak while the original's shrinks",
        swap(schedule.decay_multiplier, lambda config, steps, step: jnp.ones_like(jnp.asarray(step, float))),
    ),
    Fault(
        "rates not scaled by width",
        "gpt",
        "schedule",
        "embedding and head keep the rates tuned at width 768",
        altered_groups(without_width_scale),
    ),
    Fault(
        "no weight decay",
        "embedding",
        "schedule",
        "the decay is dropped; with a decay below the tolerance the check could not tell (tinygrad PR 17709)",
        altered_groups(without_decay),
    ),
    Fault(
        "another default decay",
        "linear",
        "schedule",
        "optax.adamw's 1e-4 (optax issue 417)",
        altered_groups(with_optax_decay),
    ),
    Fault(
        "vectors decayed",
        "mlp",
        "schedule",
        "biases and BatchNorm decay like matrices",
        altered_groups(with_decayed_vectors),
    ),
    Fault(
        "warm-up left out",
        "embedding",
        "schedule",
        "the run begins at the peak rate",
        with_fields(warmup_fraction=0.0),
        flags="--warmup-fraction 0.4 --warmdown-fraction 0.4",
    ),
    Fault(
        "warm-up counted in micro-steps",
        "linear",
        "schedule",
        "it ends after half of its steps",
        swap(lr_multiplier, in_micro_steps),
        flags="--warmup-fraction 0.4 --warmdown-fraction 0.4",
    ),
    Fault(
        "final rate left out",
        "linear",
        "schedule",
        "the warm-down goes to zero, not to a fraction of the peak",
        with_fields(final_lr_fraction=0.0),
        flags="--final-lr-fraction 0.1",
    ),
    Fault(
        "cosine for a line",
        "mlp",
        "schedule",
        "the warm-down is half a cosine",
        swap(lr_multiplier, cosine),
        flags="--warmdown-fraction 0.6",
    ),
    Fault(
        "decay over the warm-down",
        "embedding",
        "schedule",
        "the decay shrinks with the learning rate, not over the run",
        swap(schedule.decay_multiplier, lambda config, steps, step: lr_multiplier(config, steps, step)),
    ),
    Fault(
        "momentum one step late",
        "embedding",
        "schedule",
        "Muon's momentum is that of the step before",
        swap(schedule.muon_momentum, lambda config, step: muon_momentum(config, jnp.maximum(jnp.asarray(step) - 1, 0))),
    ),
)
