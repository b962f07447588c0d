"""The schedules of both frameworks, against values worked out by hand and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_impl import schedule as jax_schedule
from torch_ref import schedule as torch_schedule
from twinstep.config import OptimizerConfig

STEPS = 10
CONFIG = OptimizerConfig(
    warmup_fraction=0.2,
    warmdown_fraction=0.5,
    final_lr_fraction=0.1,
    momentum_start=0.8,
    momentum_end=0.9,
    momentum_steps=4,
    decay_schedule="linear",
)
# Two steps up, held until half way (step 5 is the last at 1), then down a fifth of 0.9 at each.
RATES = [0.5, 1, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28]
MOMENTA = [0.8, 0.825, 0.85, 0.875, *[0.9] * 6]
DECAYS = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def in_jax(function, *settings):
    return [float(jax.jit(lambda step: function(*settings, step))(jnp.int32(step))) for step in range(STEPS)]


def in_torch(function, *settings):
    return [function(*settings, step) for step in range(STEPS)]


@pytest.mark.parametrize(("run", "module"), [(in_jax, jax_schedule), (in_torch, torch_schedule)], ids=["jax", "torch"])
def test_the_schedules_have_the_values_worked_out_by_hand(run, module, x64):
    np.testing.assert_allclose(run(module.lr_multiplier, CONFIG, STEPS), RATES, rtol=1e-14)
    np.testing.assert_allclose(run(module.muon_momentum, CONFIG), MOMENTA, rtol=1e-14)
    np.testing.assert_allclose(run(module.decay_multiplier, CONFIG, STEPS), DECAYS, rtol=1e-14)
    np.testing.assert_array_equal(run(module.decay_multiplier, OptimizerConfig(), STEPS), 1)


@pytest.mark.parametrize(("warmup", "warmdown"), [(0, 0), (1, 0), (0, 1), (0.5, 0.5), (0.04, 0.33)])
def test_both_frameworks_agree_at_every_step(warmup, warmdown, x64):
    config = OptimizerConfig(warmup_fraction=warmup, warmdown_fraction=warmdown, final_lr_fraction=0.05)
    found = in_jax(jax_schedule.lr_multiplier, config, STEPS)
    expected = in_torch(torch_schedule.lr_multiplier, config, STEPS)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert all(0 < rate <= 1 for rate in expected)
