"""The train step: accumulation, masks, gradients against finite differences."""

import numpy as np
import pytest
import torch

from torch_ref.models import load_weights, make_model, weight_shapes
from torch_ref.optimizer import setup_optimizers
from torch_ref.step import eval_step, train_step
from twinstep.config import Config, GPTConfig, OptimizerConfig, TrainConfig
from twinstep.init import initial_weights

GPT = Config(
    model=GPTConfig(depth=1, d_model=16, head_dim=8, vocab_size=20),
    optimizer=OptimizerConfig(momentum_steps=3),
    train=TrainConfig(dtype="float64", steps=5),
)


def token_rows(rows=8, length=6, masked=0.3):
    random = np.random.default_rng(0)
    tokens = random.integers(0, 20, (rows, length))
    targets = np.where(random.random((rows, length)) < masked, -1, random.integers(0, 20, (rows, length)))
    return {"tokens": torch.tensor(tokens), "targets": torch.tensor(targets)}


def cut(batch, micro_steps):
    return {name: x.reshape(micro_steps, -1, *x.shape[1:]) for name, x in batch.items()}


def one_step(batch, micro_steps):
    model = make_model(GPT)
    load_weights(model, initial_weights(weight_shapes(model), 0, "nonzero"))
    metrics = train_step(GPT, model, setup_optimizers(GPT, model), 0, cut(batch, micro_steps))
    return model, metrics


@pytest.mark.parametrize("micro_steps", [2, 8])
def test_accumulation_gives_the_step_of_the_whole_batch_under_unequal_masks(micro_steps):
    whole, whole_metrics = one_step(token_rows(), 1)
    parts, part_metrics = one_step(token_rows(), micro_steps)
    assert float(part_metrics["loss"]) == pytest.approx(float(whole_metrics["loss"]), rel=1e-12)
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], expected, rtol=1e-11, atol=1e-13)


def test_loss_is_the_mean_over_targets_that_count():
    batch = token_rows()
    model = make_model(GPT)
    load_weights(model, initial_weights(weight_shapes(model), 0, "nonzero"))
    sums = eval_step(model, batch)
    _, metrics = one_step(batch, 2)
    assert float(metrics["loss"]) == pytest.approx(float(sums.nats) / int((batch["targets"] != -1).sum()), rel=1e-13)


def test_a_batch_without_targets_changes_nothing():
    model, metrics = one_step(token_rows(masked=2.0), 1)
    assert float(metrics["loss"]) == 0
    start = initial_weights(weight_shapes(model), 0, "nonzero")
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor, start[name], err_msg=name)
