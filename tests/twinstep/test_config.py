import json
from dataclasses import fields, replace

import pytest

from twinstep.config import (
    MODELS,
    Bound,
    Config,
    CorpusConfig,
    DeviceConfig,
    GPTConfig,
    LinearConfig,
    MLPConfig,
    OptimizerConfig,
    OutputConfig,
    TabularConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS, PRESETS

PARTS = (*MODELS.values(), CorpusConfig, TabularConfig, OptimizerConfig, TrainConfig, DeviceConfig, OutputConfig)


def test_a_bound_holds_its_ends_or_leaves_them_out():
    closed, open_ends = Bound(0, 1), Bound(0, 1, open_low=True, open_high=True)
    assert [closed.holds(x) for x in (-1e-9, 0, 1, 1 + 1e-9)] == [False, True, True, False]
    assert [open_ends.holds(x) for x in (0, 1e-9, 1 - 1e-9, 1)] == [False, True, True, False]
    assert not Bound(0).holds(float("nan"))
    assert not Bound(0).holds(float("inf"))
    assert str(Bound(0, 1, open_high=True)) == "at least 0 and less than 1"
    assert str(Bound(0, open_low=True)) == "more than 0"
    assert str(Bound(1, 2**31 - 1)) == "at least 1 and at most 2147483647"


def test_every_number_has_a_bound():
    for part in PARTS:
        numbers = {f.name for f in fields(part) if f.type in (int, float, int | None, float | None)}
        assert numbers == set(part.BOUNDS), part


def test_every_default_is_within_its_bounds_and_round_trips_through_json():
    for config in (*DEFAULTS.values(), *PRESETS.values()):
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_sizes_that_are_left_out_follow_from_the_others():
    assert GPTConfig(depth=6).width == 384
    assert (GPTConfig(d_model=256, head_dim=32).heads, GPTConfig(d_model=256, head_dim=32).key_value_heads) == (8, 8)
    assert GPTConfig(d_model=256, head_dim=32, kv_heads=2).key_value_heads == 2
    assert LinearConfig(classes=10).logits == 10
    assert LinearConfig(head="sigmoid", classes=2).logits == 1
    with pytest.raises(UserError, match="number of classes is not known"):
        _ = LinearConfig().logits


def test_a_batch_in_tokens_sets_the_sequences():
    config = replace(DEFAULTS["gpt"], train=TrainConfig(batch_size=3, batch_tokens=4096))
    assert config.batch_size == 16
    assert replace(config, train=TrainConfig(batch_size=3)).batch_size == 3
    with pytest.raises(UserError, match="--batch-tokens 4000 is not a multiple of --sequence-len 256"):
        replace(config, train=TrainConfig(batch_tokens=4000))


def test_batch_norm_needs_two_examples_in_a_micro_step():
    train = TrainConfig(batch_size=8, accumulation=8)
    assert Config(data=TabularConfig(), model=LinearConfig(), train=train).batch_size == 8
    with pytest.raises(UserError, match="BatchNorm needs 2 or more"):
        Config(data=TabularConfig(), model=MLPConfig(), train=train)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("train", "steps", "10"),
        ("train", "steps", 10.0),
        ("train", "steps", True),
        ("train", "steps", None),
        ("train", "remat", 1),
        ("train", "dtype", "float16"),
        ("optimizer", "matrix_lr", "0.1"),
        ("output", "out_dir", 3),
        ("model", "kv_heads", 1.5),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(part, name, value):
    values = to_dict(DEFAULTS["gpt"])
    values[part][name] = value
    with pytest.raises(UserError, match=f"config has {name}"):
        from_dict(values)


def test_a_whole_number_does_for_a_fraction():
    values = to_dict(DEFAULTS["gpt"])
    values["optimizer"]["clip_norm"] = 2
    assert from_dict(values).optimizer.clip_norm == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.pop("model_name"), "names the model None"),
        (lambda v: v.pop("train"), "config holds the parts"),
        (lambda v: v["devices"].update(colour="red"), "missing or unknown fields: ..colour"),
        (lambda v: v["train"].pop("steps"), "missing or unknown fields: ..steps"),
        (lambda v: v.update(train=3), "missing or unknown fields: 3"),
        (lambda v: v["train"].update(steps=0), "--steps is 0; it must be at least 1"),
    ],
)
def test_a_config_that_is_not_whole_is_refused(change, says):
    values = to_dict(DEFAULTS["gpt"])
    change(values)
    with pytest.raises(UserError, match=says):
        from_dict(values)


def test_a_config_made_before_a_run_could_begin_from_a_model_began_from_none():
    values = json.loads(json.dumps(to_dict(Config())))
    del values["train"]["init_from"]
    assert from_dict(values) == Config()


def test_a_config_made_before_a_flag_of_devices_or_output_takes_its_default():
    values = json.loads(json.dumps(to_dict(Config())))
    del values["devices"]["keep_freed_memory"], values["output"]["keep_last"]
    assert from_dict(values) == Config()
