"""Learning-rate multiplier, Muon's momentum and weight decay as functions of the step; traceable.

Source: karpathy/nanochat, scripts/base_train.py, `get_lr_multiplier` and `get_muon_momentum`. The first step is 0.
"""

import jax
import jax.numpy as jnp

from twinstep.config import OptimizerConfig


def lr_multiplier(config: OptimizerConfig, steps: int, step: jax.Array) -> jax.Array:
    """Warm-up from 1/n to 1, constant, then down to `final_lr_fraction`, which only step `steps` would reach."""
    warmup, warmdown = round(config.warmup_fraction * steps), round(config.warmdown_fraction * steps)
    step = jnp.asarray(step, float)
    up = (step + 1) / max(warmup, 1)
    left = (steps - step) / max(warmdown, 1)
    down = left + (1 - left) * config.final_lr_fraction
    return jnp.where(step < warmup, up, jnp.where(step <= steps - warmdown, 1.0, down))


def muon_momentum(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """Linear from `momentum_start` to `momentum_end` over `momentum_steps`, constant after."""
    share = jnp.minimum(jnp.asarray(step, float) / config.momentum_steps, 1)
    return (1 - share) * config.momentum_start + share * config.momentum_end


def decay_multiplier(config: OptimizerConfig, steps: int, step: jax.Array) -> jax.Array:
    """1, or linearly from 1 down to 0 over the run."""
    if config.decay_schedule == "constant":
        return jnp.ones_like(step, float)
    return 1 - jnp.asarray(step, float) / steps
