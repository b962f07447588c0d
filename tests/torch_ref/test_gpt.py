"""The GPT's parts against closed forms, and its causality through gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from torch_ref.models import load_weights, make_model, weight_shapes
from torch_ref.models.gpt import apply_rotary, rms_norm, rotary_table
from twinstep.config import Config, GPTConfig, TrainConfig
from twinstep.init import initial_weights

CONFIG = Config(
    model=GPTConfig(depth=2, d_model=32, head_dim=8, kv_heads=2, vocab_size=40), train=TrainConfig(dtype="float64")
)


def loaded_model(config: Config, init="nonzero"):
    model = make_model(config)
    load_weights(model, initial_weights(weight_shapes(model), 0, init))
    return model


def test_rms_norm_of_tiny_values_shows_its_eps():
    """At a mean square of 1e-8 the eps of 1.19e-07 decides: 1e-4 becomes 0.278, not 1."""
    for dtype in (torch.float32, torch.float64):
        found = rms_norm(torch.full((8,), 1e-4, dtype=dtype))
        assert float(found[0]) == pytest.approx(1e-4 / np.sqrt(1e-8 + 2**-23), rel=1e-6)


def test_rotary_rotates_each_pair_by_minus_its_angle():
    cos, sin = rotary_table(replace(CONFIG.model, rotary_dtype="float64"), 16)
    x = np.random.default_rng(0).standard_normal((1, 16, 3, 8))
    pairs = x[..., :4] + 1j * x[..., 4:]
    angle = np.arange(16)[:, None] * 10000.0 ** (-np.arange(0, 8, 2) / 8)
    rotated = pairs * np.exp(-1j * angle)[None, :, None, :]
    found = apply_rotary(torch.tensor(x), cos, sin)
    np.testing.assert_allclose(found, np.concatenate([rotated.real, rotated.imag], -1), atol=1e-14)


def test_no_logit_depends_on_a_later_token():
    """Each position holds a token of its own, so a row of the embedding's gradient is a position's influence."""
    model = loaded_model(CONFIG)
    for t in (0, 7, 15):
        model.zero_grad()
        model(torch.arange(16)[None, :])[0, t].sum().backward()
        rows = model.wte.weight.grad[:16].abs().amax(-1)
        assert (rows[: t + 1] > 0).all()
        assert (rows[t + 1 :] == 0).all()


def test_logits_stay_within_the_softcap():
    model = loaded_model(replace(CONFIG, train=TrainConfig()))
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
        logits = model(torch.arange(16)[None, :])
    assert 14.9 < float(logits.abs().max()) <= 15.0


def test_upstream_start_gives_uniform_logits():
    assert not loaded_model(CONFIG, "native")(torch.arange(16)[None, :]).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_are_float32_whatever_the_computation(dtype):
    model = loaded_model(replace(CONFIG, train=TrainConfig(dtype=dtype)))
    assert model(torch.arange(16)[None, :]).dtype == torch.float32


def test_rematerialization_changes_no_gradient():
    gradients = []
    for remat in (False, True):
        model = loaded_model(replace(CONFIG, train=TrainConfig(dtype="float64", remat=remat)))
        (model(torch.arange(16)[None, :]) ** 2).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-13, atol=1e-14)
