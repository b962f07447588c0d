import numpy as np
import pytest
import torch

from torch_ref.checkpoint import load_params, read_facts, restore, save, training_tensors
from torch_ref.models import load_weights, make_model, weight_shapes
from torch_ref.optimizer import set_schedule, setup_optimizers
from torch_ref.step import train_step
from twinstep.config import Config, MLPConfig, OptimizerConfig, TabularConfig
from twinstep.errors import RunError, UserError
from twinstep.init import initial_weights
from twinstep.progress import first_facts
from twinstep.run_dir import CHECKPOINTS, checkpoint_steps, remove_old, write_run

CONFIG = Config(model=MLPConfig(features=6, classes=3, hidden=5), data=TabularConfig())


def make_trained(config=CONFIG, steps=2, device="cpu"):
    torch.manual_seed(config.train.seed)
    model = make_model(config)
    load_weights(model, initial_weights(weight_shapes(model), 0, "nonzero"))
    optimizers = setup_optimizers(config, model.to(device))
    generator = torch.Generator().manual_seed(0)
    batch = {
        "inputs": torch.randn(1, 8, 6, generator=generator),
        "targets": torch.randint(0, 3, (1, 8), generator=generator),
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    for step in range(steps):
        train_step(config, model, optimizers, step, batch)
    return model, optimizers


on_gpu = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="fused AdamW is for a GPU"))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_the_optimizers_go_on_where_they_were(device, run):
    saved, saved_optimizers = make_trained(steps=2, device=device)
    assert saved_optimizers[0].defaults["fused"] == (device == "cuda")
    save(run, 2, saved, saved_optimizers, first_facts(CONFIG))
    restore(run, CONFIG, *(fresh := make_trained(steps=0, device=device)), 2)
    for model, optimizers in ((saved, saved_optimizers), fresh):
        set_schedule(CONFIG, optimizers, 2)
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(saved.parameters(), fresh[0].parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path, CONFIG, {})
    return tmp_path


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("matrix_optimizer", ["muon", "sgd"])
def test_model_optimizers_and_generator_come_back_as_they_were_saved(optimizer, matrix_optimizer, tmp_path):
    settings = OptimizerConfig(optimizer=optimizer, matrix_optimizer=matrix_optimizer)
    config, run = Config(model=CONFIG.model, data=CONFIG.data, optimizer=settings), tmp_path
    write_run(run, config, {})
    model, optimizers = make_trained(config)
    facts = {**first_facts(config), "best_val_loss": 0.1 + 0.2}
    save(run, 2, model, optimizers, facts)
    expected = {**model.state_dict(), **training_tensors(model, optimizers)}
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    draws = torch.rand(3)

    fresh, fresh_optimizers = make_trained(config, steps=0)
    assert restore(run, config, fresh, fresh_optimizers, 2) == facts
    found = {**fresh.state_dict(), **training_tensors(fresh, fresh_optimizers)}
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert torch.equal(torch.rand(3), draws), "the generator goes on elsewhere"
    _, weights = load_params(run)
    assert all(isinstance(array, np.ndarray) for array in weights.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_and_not_saved(value, run):
    model, optimizers = make_trained()
    with torch.no_grad():
        model.fc2.bias[1] = value
    with pytest.raises(RunError, match=r"step 2: fc2\.bias is not finite"):
        save(run, 2, model, optimizers, first_facts(CONFIG))
    assert checkpoint_steps(run) == []


def test_a_save_that_fails_leaves_nothing_behind(run, monkeypatch):
    model, optimizers = make_trained()
    save(run, 1, model, optimizers, first_facts(CONFIG))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch_ref.checkpoint.sync", full)
    with pytest.raises(RunError, match=r"cannot save the checkpoint of step 2: .*No space left on device"):
        save(run, 2, model, optimizers, first_facts(CONFIG))
    assert [entry.name for entry in (run / CHECKPOINTS).iterdir()] == ["1"]


def test_the_last_ones_and_the_best_are_kept(run):
    model, optimizers = make_trained()
    for step in (1, 2, 3, 4, 5):
        save(run, step, model, optimizers, {**first_facts(CONFIG), "best_step": 2})
        remove_old(run, 2, read_facts)
    assert checkpoint_steps(run) == [2, 4, 5]


def test_a_checkpoint_that_is_not_there_is_refused(run):
    with pytest.raises(UserError, match="has no finished checkpoint"):
        load_params(run)
    save(run, 3, *make_trained(), first_facts(CONFIG))
    with pytest.raises(UserError, match=r"has no checkpoint of step 4; there are 3"):
        load_params(run, 4)
    with pytest.raises(UserError, match="no run in"):
        load_params(run / "nowhere")


def test_state_of_a_parameter_that_is_not_there_is_refused_by_name(run):
    model, optimizers = make_trained()
    save(run, 3, model, optimizers, first_facts(CONFIG))
    model.fc2.register_parameter("bias", None)
    with pytest.raises(UserError, match=r"cannot be read: .*fc2\.bias"):
        restore(run, CONFIG, model, [], 3)


def test_a_checkpoint_of_jax_impl_is_recognized(run):
    (run / CHECKPOINTS / "3").mkdir()
    (run / CHECKPOINTS / "3" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UserError, match="is a run of jax_impl; python -m parity convert"):
        read_facts(run, 3)
