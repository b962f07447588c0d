from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers.optimizer_cases import CONFIGS, CONSTANT, GPT, draw, numpy_adamw
from torch_ref.models import make_model
from torch_ref.muon import Muon
from torch_ref.optimizer import clip_by_global_norm, set_schedule, setup_optimizers
from twinstep.config import Config, LinearConfig, OptimizerConfig, TabularConfig
from twinstep.config import TrainConfig as Train

LINEAR = Config(model=LinearConfig(features=4, classes=3), data=TabularConfig(), train=Train(steps=8, dtype="float64"))


def run_steps(config, optimizers, parameter, grads):
    path = []
    for step, g in enumerate(grads):
        parameter.grad = torch.tensor(g)
        set_schedule(config, optimizers, step)
        for optimizer in optimizers:
            optimizer.step()
        path.append(parameter.detach().numpy().copy())
    return path


@pytest.mark.parametrize("schedule", [CONSTANT, replace(CONSTANT, warmup_fraction=0.5, warmdown_fraction=0.5)])
def test_adamw_follows_its_formula_at_every_rate_of_the_schedule(schedule):
    config = replace(LINEAR, optimizer=replace(schedule, optimizer="adamw", adamw_lr=0.1, weight_decay=0.2))
    model = make_model(config)
    weight = model.linear.weight
    start, grads = weight.detach().numpy().copy(), [draw((3, 4), seed) for seed in range(8)]
    shape = [1.0] * 8 if schedule is CONSTANT else [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    expected = numpy_adamw(start, grads, [0.1 * s for s in shape], 0.7, 0.9, 1e-3, 0.2)
    found = run_steps(config, setup_optimizers(config, model), weight, grads)
    for ours, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-14)


def test_groups_do_what_one_optimizer_per_parameter_would():
    config = replace(LINEAR, optimizer=replace(CONSTANT, optimizer="adamw", weight_decay=0.2))
    model = make_model(config)
    twins = {name: torch.nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    decays = {"linear.weight": 0.2, "linear.bias": 0.0}
    witnesses = [
        torch.optim.AdamW([twins[name]], lr=0.01, betas=(0.7, 0.9), eps=1e-3, weight_decay=decays[name])
        for name in twins
    ]
    optimizers = setup_optimizers(config, model)
    for step in range(5):
        for name, p in model.named_parameters():
            p.grad = torch.tensor(draw(tuple(p.shape), step))
            twins[name].grad = p.grad.clone()
        set_schedule(config, optimizers, step)
        for optimizer in (*optimizers, *witnesses):
            optimizer.step()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach(), twins[name].detach(), rtol=0, atol=1e-15)


def test_sgd_decays_apart_from_the_gradient():
    optimizer = replace(CONSTANT, matrix_optimizer="sgd", matrix_lr=0.1, matrix_weight_decay=0.2)
    config = replace(LINEAR, optimizer=optimizer)
    model = make_model(config)
    p, g = model.linear.weight.detach().numpy().copy(), draw((3, 4), 0)
    _, sgd = setup_optimizers(config, model)
    (found,) = run_steps(config, [sgd], model.linear.weight, [g])
    np.testing.assert_allclose(found, p - 0.1 * (g + 0.2 * p), rtol=0, atol=1e-15)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_name)
def test_every_parameter_has_one_optimizer(config):
    model = make_model(config)
    groups = [group for optimizer in setup_optimizers(config, model) for group in optimizer.param_groups]
    owned = [p for group in groups for p in group["params"]]
    assert sorted(map(id, owned)) == sorted(id(p) for p in model.parameters())


def test_matrices_of_the_blocks_are_muons_and_no_others():
    model = make_model(GPT)
    adamw, muon = setup_optimizers(GPT, model)
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(muon, Muon)
    assert [group["label"] for group in adamw.param_groups] == ["embedding", "head"]
    assert [group["label"] for group in muon.param_groups] == ["matrix"]
    assert len(muon.param_groups[0]["params"]) == 12


def test_the_schedule_is_written_into_every_group():
    config = replace(
        GPT,
        optimizer=OptimizerConfig(
            warmup_fraction=0.5, weight_decay=0.4, matrix_weight_decay=0.6, decay_schedule="linear", momentum_steps=10
        ),
        train=Train(steps=8),
    )
    adamw, muon = setup_optimizers(config, make_model(config))
    assert set_schedule(config, [adamw, muon], 1) == pytest.approx(0.02 * 0.5)
    assert [group["lr"] for group in adamw.param_groups] == pytest.approx([0.4 * 0.5, 0.008 * 0.5])
    assert [group["weight_decay"] for group in adamw.param_groups] == pytest.approx([0.4 * 7 / 8] * 2)
    (group,) = muon.param_groups
    assert (group["lr"], group["weight_decay"]) == pytest.approx((0.02 * 0.5, 0.6 * 7 / 8))
    assert group["momentum"] == pytest.approx(0.86)


@pytest.mark.parametrize(("max_norm", "factor"), [(2.0, 2 / (10 + 1e-6)), (11.0, 1.0), (0.0, 1.0)])
def test_clip_uses_the_norm_over_all_groups(max_norm, factor):
    model = torch.nn.ParameterList([torch.zeros(2, 2), torch.zeros(4)])
    model[0].grad, model[1].grad = torch.full((2, 2), 3.0), torch.full((4,), 4.0)
    assert float(clip_by_global_norm(model, max_norm)) == pytest.approx(10.0)  # before clipping
    np.testing.assert_allclose(model[0].grad, 3 * factor, rtol=1e-6)
    np.testing.assert_allclose(model[1].grad, 4 * factor, rtol=1e-6)
