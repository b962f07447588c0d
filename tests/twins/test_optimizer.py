"""Labels and groups: which parameter goes to which optimizer, at which rate."""

from dataclasses import replace

import pytest

from tests.helpers.optimizer_cases import CONFIGS, GPT
from twinstep.config import OptimizerConfig, TrainConfig
from twinstep.errors import UserError


@pytest.fixture
def optimizer(twin):
    return twin.module("optimizer")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_name)
def test_every_parameter_has_one_label(twin, optimizer, config):
    names = twin.parameter_names(config)
    labels = optimizer.label_parameters(config, names)
    assert list(labels) == names
    assert set(labels.values()) <= set(optimizer.optimizer_groups(config))
    with pytest.raises(UserError, match=r"'other\.weight' matches 0"):
        optimizer.label_parameters(config, [*names, "other.weight"])
    with pytest.raises(UserError, match="matches no parameter"):
        optimizer.label_parameters(config, names[:1])


def test_matrices_of_the_blocks_are_muons_and_no_others(twin, optimizer):
    labels = optimizer.label_parameters(GPT, twin.parameter_names(GPT))
    assert {name for name, label in labels.items() if label != "matrix"} == {"wte.weight", "lm_head.weight"}
    assert (labels["wte.weight"], labels["lm_head.weight"]) == ("embedding", "head")


def test_rates_of_embedding_and_head_fall_as_the_root_of_the_width(optimizer):
    groups = optimizer.optimizer_groups(GPT)
    assert groups["embedding"] == optimizer.Group("adamw", pytest.approx(0.2 * 2), 0.0)  # 768 / 192 is 4
    assert groups["head"] == optimizer.Group("adamw", pytest.approx(0.004 * 2), 0.0)
    assert groups["matrix"] == optimizer.Group("muon", 0.02, 0.0)


def test_one_optimizer_for_all_still_does_not_decay_vectors(optimizer):
    config = replace(GPT, optimizer=OptimizerConfig(optimizer="adamw", weight_decay=0.3))
    groups = optimizer.optimizer_groups(config)
    decayed = {groups[label] for label in ("embedding", "matrix", "head")}
    assert decayed == {optimizer.Group("adamw", 0.01, 0.3)}
    assert groups["vector"] == optimizer.Group("adamw", 0.01, 0.0)


@pytest.mark.parametrize(
    ("setting", "dtype", "expected"),
    [
        ("auto", "float64", "float64"),
        ("auto", "float32", "float32"),
        ("auto", "bfloat16", "float32"),
        ("bfloat16", "float64", "bfloat16"),
    ],
)
def test_the_orthogonalization_has_its_own_type(optimizer, setting, dtype, expected):
    config = replace(GPT, optimizer=OptimizerConfig(newton_schulz_dtype=setting), train=TrainConfig(dtype=dtype))
    assert str(optimizer.newton_schulz_dtype(config)).removeprefix("torch.") == expected
