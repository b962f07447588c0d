import json

import pytest

from twinstep.cli import parse_flags, parse_train_config, place_run
from twinstep.config import DeviceConfig, TrainConfig, to_dict
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS, PRESETS
from twinstep.run_dir import write_run


def parse(*argv: str):
    return parse_train_config("train", list(argv), "jax")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(folder, *argv: str):
    """A run whose config is that of a command line, as training would have left it."""
    config = parse(*argv, "--out-dir", str(folder))
    folder.mkdir(parents=True)
    write_run(folder, config, {"sha256": "0"})
    return config


def test_the_model_may_be_left_out_and_flags_follow_at_once():
    assert parse("--steps", "7").model_name == "gpt"
    assert parse("--steps", "7").train.steps == 7
    assert parse("mlp", "--steps=7").model_name == "mlp"
    assert parse().model == DEFAULTS["gpt"].model


def test_a_preset_is_the_start_and_flags_change_it():
    config = parse("--preset", "parity", "--steps", "3")
    assert config.model == PRESETS["parity"].model
    assert config.train.steps == 3
    assert parse("gpt", "--preset=parity").train == PRESETS["parity"].train


def test_the_first_free_name_is_taken(place):
    assert place_run(parse(), "jax").output.out_dir == "runs/jax-gpt-1"
    for number in (1, 2, 4):
        (place / "runs" / f"jax-gpt-{number}").mkdir(parents=True)
    assert place_run(parse(), "jax").output.out_dir == "runs/jax-gpt-3"
    assert place_run(parse("linear"), "jax").output.out_dir == "runs/jax-linear-1"
    assert place_run(parse(), "torch").output.out_dir == "runs/torch-gpt-1"
    assert place_run(parse("--out-dir", "mine"), "jax").output.out_dir == "mine"


def test_resume_takes_the_runs_own_config(place):
    record(place / "run", "linear", "--steps", "5", "--seed", "3", "--save-every", "2")
    config = parse("linear", "--resume", "--out-dir", str(place / "run"))
    assert (config.train.steps, config.train.seed, config.output.save_every) == (5, 3, 2)
    assert config.output.resume


def test_resume_takes_the_newest_run_when_no_place_is_given(place):
    import os

    for number, time in ((1, 10), (2, 30), (3, 20)):
        record(place / "runs" / f"jax-linear-{number}", "linear", "--seed", str(number))
        os.utime(place / "runs" / f"jax-linear-{number}" / "config.json", (time, time))
    assert parse("linear", "--resume").train.seed == 2


def test_flags_that_repeat_the_run_or_change_nothing_it_computes_are_accepted(place):
    (place / "words.txt").write_text("words")
    record(place / "run", "--depth", "2", "--d-model", "96", "--head-dim", "32", "--data", "words.txt")
    on = ("--resume", "--out-dir", str(place / "run"))
    # d-model 96 alone would not fit the preset's heads: flags are read over the run's config, not over the preset.
    assert parse(*on, "--d-model", "96").model.head_dim == 32
    assert parse(*on, "--log-every", "3", "--save-every", "9", "--parallel", "jit").output.log_every == 3
    assert parse(*on, "--sample-prompt", "Once").output.sample_prompt == "Once"
    assert parse(*on, "--data", str(place / "words.txt")).data.data == str(place / "words.txt")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--seed", "4"), "--seed is 4, but the run in .* has 3; leave the flag out"),
        (("--steps", "6"), "--steps is 6, but .* has 5"),
        (("--optimizer", "adamw"), "--optimizer is adamw, but .* has muon"),
        (("--head", "sigmoid"), "--head is sigmoid, but .* has softmax"),
        (("--dataset", "breast_cancer"), "--dataset is breast_cancer, but .* has digits"),
    ],
)
def test_flags_that_contradict_the_run_are_refused_with_both_values(flags, says, place):
    record(place / "run", "linear", "--steps", "5", "--seed", "3")
    with pytest.raises(UserError, match=says):
        parse("linear", "--resume", "--out-dir", str(place / "run"), *flags)


def test_the_preset_of_the_run_may_be_repeated_and_another_is_refused(place):
    config = record(place / "run", "--preset", "parity", "--steps", "3")
    values = to_dict(config)
    values["model"]["vocab_size"] = 256  # what a run fills in
    (place / "run" / "config.json").write_text(json.dumps(values))
    on = ("--resume", "--out-dir", str(place / "run"))
    assert parse(*on, "--preset", "parity", "--steps", "3").train.steps == 3
    with pytest.raises(UserError, match=r"--steps is 20, but .* has 3"):
        parse(*on, "--preset", "parity")
    with pytest.raises(UserError, match=r"--depth is 20, but .* has 2"):
        parse(*on, "--preset", "nanochat-d20")


def test_another_horizon_than_steps_may_be_repeated(place):
    config = record(place / "run", "--preset", "nanochat-d20")
    values = to_dict(config)
    values["model"]["vocab_size"], values["train"]["steps"] = 65536, 21400
    (place / "run" / "config.json").write_text(json.dumps(values))
    assert parse("--resume", "--out-dir", str(place / "run"), "--preset", "nanochat-d20").train.steps == 21400


def test_help_names_every_flag_with_default_and_unit(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("gpt", "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in to_dict(DEFAULTS["gpt"]).values():
        for name in part if isinstance(part, dict) else ():
            assert f"--{name.replace('_', '-')}" in text, name
    assert "Length of a training sequence in tokens. (default: 256)" in text
    assert "--preset is one of parity, nanochat-d20" in text


def test_a_complaint_of_several_lines_becomes_one():
    with pytest.raises(UserError) as error:
        parse_flags("train", TrainConfig(), ["--stepz", "3"])
    assert "\n" not in str(error.value)
    assert "--stepz" in str(error.value)
    assert "(see train --help)" in str(error.value)
    with pytest.raises(UserError, match="'one'"):
        parse_flags("train", DeviceConfig(), ["--num-processes", "one"])
