"""Learning-rate multiplier, Muon's momentum and weight decay as functions of the step, in plain Python.

Source: karpathy/nanochat, scripts/base_train.py, `get_lr_multiplier` and `get_muon_momentum`. The first step is 0.
"""

from twinstep.config import OptimizerConfig


def lr_multiplier(config: OptimizerConfig, steps: int, step: int) -> float:
    """Warm-up from 1/n to 1, constant, then down to `final_lr_fraction`, which only step `steps` would reach."""
    warmup, warmdown = round(config.warmup_fraction * steps), round(config.warmdown_fraction * steps)
    up = (step + 1) / max(warmup, 1)
    left = (steps - step) / max(warmdown, 1)
    down = left + (1 - left) * config.final_lr_fraction
    return up if step < warmup else 1.0 if step <= steps - warmdown else down


def muon_momentum(config: OptimizerConfig, step: int) -> float:
    """Linear from `momentum_start` to `momentum_end` over `momentum_steps`, constant after."""
    share = min(step / config.momentum_steps, 1)
    return (1 - share) * config.momentum_start + share * config.momentum_end


def decay_multiplier(config: OptimizerConfig, steps: int, step: int) -> float:
    """1, or linearly from 1 down to 0 over the run."""
    if config.decay_schedule == "constant":
        return 1.0
    return 1 - step / steps
