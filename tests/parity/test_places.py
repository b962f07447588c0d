"""The table of what computes what names files and functions that are there."""

import importlib
from pathlib import Path

import pytest

from parity.check_configs import SUBJECTS
from parity.places import FORWARD, LOGITS, PLACES, Place, code_of, written
from parity.result import STAGES

ROOT = Path(__file__).parents[2]


def all_code() -> set[str]:
    places = [*PLACES, *(Place("activations", name, torch, jax) for name, torch, jax in FORWARD)]
    places += [Place("activations", "logits", code) for code in LOGITS.values()]
    return {part for place in places for side in written(place).values() for part in side.split(", ")}


@pytest.mark.parametrize("code", sorted(all_code()))
def test_every_file_and_function_exists(code):
    file, function = code.split(" ")
    assert (ROOT / file).is_file()
    module = importlib.import_module(file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    found = module
    for name in function.split("."):
        found = getattr(found, name)
    assert callable(found)
    assert found.__module__ == module.__name__


@pytest.mark.parametrize(
    ("stage", "tensor", "function"),
    [
        ("weights", "h.0.attn.c_q.weight (carried)", "parity/own_bridge.py torch_to_jax"),
        ("schedule", "logged learning_rate", "jax_impl/optimizer.py logged_learning_rate"),
        ("schedule", "matrix momentum", "jax_impl/schedule.py muon_momentum"),
        ("activations", "h.0.attn.c_proj [1]", "jax_impl/models/layers.py Linear.forward"),
        ("activations", "h.11.mlp.relu_squared #2", "jax_impl/models/gpt.py MLP.forward"),
        ("activations", "h.3", "jax_impl/models/gpt.py Block.forward"),
        ("activations", "norm", "jax_impl/models/batch_norm.py BatchNorm.forward"),
        ("parameters", "norm.running_var", "jax_impl/models/batch_norm.py BatchNorm.forward"),
        ("parameters", "norm.weight", "jax_impl/step.py train_step"),
        ("generation", "sampled tokens, generate", "jax_impl/generate.py generate"),
        ("evaluation", "val_loss", "jax_impl/evaluate.py metrics"),
        ("evaluation", "nats", "jax_impl/step.py eval_step"),
    ],
)
def test_a_tensor_has_the_code_that_computes_it(stage, tensor, function):
    assert code_of(stage, tensor)["jax"] == function


def test_every_stage_has_its_code_and_every_model_its_logits():
    assert all(code_of(stage) for stage in STAGES)
    assert set(LOGITS) == set(SUBJECTS)


def test_the_algorithm_of_a_group_decides_who_updates_it():
    assert code_of("update", "h.0.attn.c_q.weight", "muon")["jax"] == "jax_impl/muon.py muon"
    assert code_of("update", "wte.weight", "adamw")["torch"] == "torch_ref/optimizer.py setup_optimizers"
    assert code_of("activations", "h.0.attn.y [1]") == {
        "torch": "torch_ref/models/attention.py causal_attention",
        "jax": "jax_impl/models/blockwise.py blockwise_attention",
    }
