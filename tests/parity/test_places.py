"""The table of what computes what names files and functions that are there."""

import importlib
from pathlib import Path

import pytest

from parity.check_configs import SUBJECTS
from parity.places import FORWARD, LOGITS, PLACES, code_of
from parity.result import STAGES

ROOT = Path(__file__).parents[2]


def all_code() -> set[str]:
    found = [code_of(p.stage, algorithm=a) for p in PLACES for a in ("", "muon", "adamw", "sgd")]
    names = ["h.0.attn.c_q", "h.0.attn.c_proj", "h.0.attn.q", "h.0.attn.y", "h.0.attn", "h.0.mlp", "h.0", "wte"]
    names += ["embed_norm", "norm", "dropout", "fc1", "h.3.mlp.c_fc [1]", "h.0.mlp.relu_squared #2"]
    found += [code_of("activations", name) for name in names]
    found += [code_of("activations", "logits", model=model) for model in LOGITS]
    found += [code_of("weights", "bridge"), code_of("schedule", "matrix momentum"), code_of("evaluation", "val_loss")]
    found += [code_of("schedule", "logged learning_rate"), code_of("schedule", "head weight_decay")]
    found += [code_of("parameters", "norm.running_var"), code_of("loss", "training step")]
    return {part for code in found for side in code.values() for part in side.split(", ")}


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


def test_no_line_of_the_table_is_left_untested():
    named = {name.split(" ")[1] for name in all_code()}
    for _, torch, jax in FORWARD:
        for part in f"{torch}, {jax}".removesuffix(", ").split(", "):
            assert part == "ATTENTION" or part.split(" ")[1] in named
    for place in PLACES:
        for part in f"{place.torch}, {place.jax}".removesuffix(", ").split(", "):
            assert part == "ATTENTION" or part.split(" ")[1] in named


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
