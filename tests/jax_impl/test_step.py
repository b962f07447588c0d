"""The train step: accumulation, masks, train and eval mode, compilation."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from jax_impl.models import make_model
from jax_impl.optimizer import make_optimizer
from jax_impl.step import eval_step, init_state, train_step
from jax_impl.tree import flatten
from tests.helpers.jaxprs import times_compiled
from twinstep.config import Config, GPTConfig, MLPConfig, OptimizerConfig, TabularConfig, TrainConfig
from twinstep.init import initial_weights

GPT = Config(
    model=GPTConfig(depth=1, d_model=16, head_dim=8, vocab_size=20),
    optimizer=OptimizerConfig(momentum_steps=3),
    train=TrainConfig(dtype="float64", steps=5),
)
MLP = Config(
    model=MLPConfig(hidden=12, features=6, classes=3),
    data=TabularConfig(),
    train=TrainConfig(dtype="float64", steps=5),
)


def set_up(config: Config):
    model = make_model(config)
    optimizer = make_optimizer(config, model.params)
    shapes = {name: s.shape for name, s in (flatten(model.params) | flatten(model.buffers)).items()}
    state = init_state(model, optimizer, initial_weights(shapes, 0, "nonzero"), 0)
    return model, jax.jit(partial(train_step, config, model, optimizer)), state


def token_rows(rows=8, length=6, masked=0.3):
    random = np.random.default_rng(0)
    tokens = random.integers(0, 20, (rows, length))
    targets = np.where(random.random((rows, length)) < masked, -1, random.integers(0, 20, (rows, length)))
    return {"tokens": tokens, "targets": targets}


def table_rows(rows=8):
    random = np.random.default_rng(0)
    return {"inputs": random.standard_normal((rows, 6)), "targets": random.integers(0, 3, rows)}


def cut(batch, micro_steps):
    return {name: x.reshape(micro_steps, -1, *x.shape[1:]) for name, x in batch.items()}


def test_accumulation_gives_the_step_of_the_whole_batch_under_unequal_masks(x64):
    _, step, state = set_up(GPT)
    whole, whole_metrics = step(state, cut(token_rows(), 1))
    parts, part_metrics = step(state, cut(token_rows(), 8))
    assert float(part_metrics["loss"]) == pytest.approx(float(whole_metrics["loss"]), rel=1e-12)
    for name, expected in flatten(whole.params).items():
        np.testing.assert_allclose(flatten(parts.params)[name], expected, rtol=1e-11, atol=1e-13, err_msg=name)


def test_loss_is_the_mean_over_targets_that_count(x64):
    model, step, state = set_up(GPT)
    batch = token_rows()
    _, metrics = step(state, cut(batch, 2))
    sums = jax.jit(partial(eval_step, model))(state.params, state.buffers, batch)
    assert float(metrics["loss"]) == pytest.approx(float(sums.nats) / (batch["targets"] != -1).sum(), rel=1e-13)


def test_a_batch_without_targets_changes_nothing_but_the_count(x64):
    _, step, state = set_up(GPT)
    batch = token_rows(masked=2.0)
    after, metrics = step(state, cut(batch, 1))
    assert float(metrics["loss"]) == 0
    for name, before in flatten(state.params).items():
        np.testing.assert_array_equal(flatten(after.params)[name], before, err_msg=name)
    assert int(after.step) == 1


def test_gradients_match_central_differences(x64):
    model, _, state = set_up(GPT)
    batch = token_rows()
    loss = jax.jit(lambda params: eval_step(model, params, state.buffers, batch).nats)
    grads = flatten(jax.grad(loss)(state.params))
    random = np.random.default_rng(1)
    for name, leaf in flatten(state.params).items():
        direction = random.standard_normal(leaf.shape)
        at = lambda h, name=name, direction=direction: loss(
            jax.tree_util.tree_map_with_path(
                lambda path, x: x + h * direction if ".".join(e.key for e in path) == name else x, state.params
            )
        )
        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        assert float((grads[name] * direction).sum()) == pytest.approx(float(slope), rel=1e-6, abs=1e-8), name


def test_train_mode_updates_running_statistics_and_eval_mode_reads_them(x64):
    model, step, state = set_up(MLP)
    after, _ = step(state, cut(table_rows(), 1))
    assert not np.array_equal(after.buffers["norm"]["running_mean"], state.buffers["norm"]["running_mean"])
    evaluate = jax.jit(partial(eval_step, model))
    first = evaluate(after.params, after.buffers, table_rows())
    np.testing.assert_array_equal(first.nats, evaluate(after.params, after.buffers, table_rows()).nats)
    other = evaluate(after.params, state.buffers, table_rows())
    assert float(first.nats) != float(other.nats)


def test_dropout_differs_from_step_to_step_and_repeats_with_the_seed(x64):
    _, step, state = set_up(replace(MLP, model=replace(MLP.model, dropout=0.5)))
    batch = cut(table_rows(), 1)
    first, again = (float(step(state, batch)[1]["loss"]) for _ in range(2))
    later = float(step(state._replace(step=state.step + 1), batch)[1]["loss"])
    assert first == again
    assert first != later


def test_the_second_step_does_not_recompile():
    config = replace(GPT, train=replace(GPT.train, dtype="float32"))
    _, step, state = set_up(config)
    batch = {name: x.astype(np.int32) for name, x in cut(token_rows(), 2).items()}
    for _ in range(3):
        state, _ = step(state, batch)
    assert times_compiled(step) == 1
