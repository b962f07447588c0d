"""The presets leave no number idle, and a check says which numbers of another configuration are."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

from parity.check_configs import STEPS, SUBJECTS, subject, with_flags
from parity.idle import find_idle, nudged_constants, nudged_fields, zeros
from parity.reference import make_reference
from parity.result import NO_PART as WITHOUT_PART
from parity.result import Idle
from twinstep.data import load_data
from twinstep.resolve import fill_in

# What has no part in a model by its design.
NO_PART = {
    "gpt": {"--adamw-lr"},  # it has no vectors
    # AdamW has vectors only, which never decay
    "linear": {"--embedding-lr", "--head-lr", "--weight-decay", "RMS_NORM_EPS"},
    "embedding": {"--adamw-lr", "--head-lr", "RMS_NORM_EPS"},
    "mlp": {"--embedding-lr", "--head-lr", "--weight-decay", "RMS_NORM_EPS"},
}


@cache
def run_of(config, init):
    data = load_data(config)
    config = fill_in(config, data)
    return config, data, make_reference(config, data, init, first=False)


def idle_of(config, init="nonzero"):
    config, data, reference = run_of(config, init)
    return find_idle(config, data, init, reference)


@pytest.mark.slow
@pytest.mark.parametrize("model", SUBJECTS)
def test_no_number_of_a_preset_is_idle(model):
    assert {idle.number: idle.why for idle in idle_of(subject(model))} == dict.fromkeys(NO_PART[model], WITHOUT_PART)


def test_numbers_that_do_nothing_are_named_with_the_reason():
    flags = ["--steps", "3", "--clip-norm", "1000", "--final-lr-fraction", "0", "--warmdown-fraction", "0"]
    found = {idle.number: idle.why for idle in idle_of(with_flags(subject("linear"), flags))}
    assert found["--clip-norm"] == "no gradient is clipped"
    assert found["--final-lr-fraction"] == "it is zero"
    assert found["--warmdown-fraction"] == "it is zero"
    assert found["--head-lr"] == "it has no part"


def test_every_number_and_constant_is_nudged():
    config = subject("gpt")
    fields = {nudge.number: nudge.config for nudge in nudged_fields(config)}
    assert fields["--softcap"].model.softcap == pytest.approx(13.5)
    assert fields["--newton-schulz-steps"].optimizer.newton_schulz_steps == 6
    assert fields["--warmup-fraction"].optimizer.warmup_fraction == pytest.approx(0.2)
    assert not list(zeros(config))
    import torch_ref.muon
    from torch_ref.models import gpt

    constants = {nudge.number: nudge for nudge in nudged_constants(config)}
    assert {"RMS_NORM_EPS", "EPS", "COEFFICIENTS[0]", "COEFFICIENTS[1]", "COEFFICIENTS[2]"} <= set(constants)
    before = gpt.RMS_NORM_EPS, torch_ref.muon.COEFFICIENTS
    with constants["RMS_NORM_EPS"].changed(), constants["COEFFICIENTS[1]"].changed():
        assert pytest.approx(0.9 * before[0]) == gpt.RMS_NORM_EPS
        assert pytest.approx((3.4445, -4.2975, 2.0315)) == torch_ref.muon.COEFFICIENTS
    assert before == (gpt.RMS_NORM_EPS, torch_ref.muon.COEFFICIENTS)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["nonzero", "native"])
@pytest.mark.parametrize("model", SUBJECTS)
def test_every_branch_of_a_preset_is_taken_twice_and_both_ways(model, init):
    config, data, reference = run_of(subject(model), init)
    clipped = [at.stepped.grad_norm > config.optimizer.clip_norm for at in reference.watched.values()]
    assert 2 <= sum(clipped) <= STEPS - 2, [float(at.stepped.grad_norm) for at in reference.watched.values()]
    rates = next(curve for name, curve in reference.schedule.items() if name.endswith("learning_rate"))
    peak = rates.max()
    up = sum(later > earlier for earlier, later in pairwise(rates))
    down = sum(later < earlier for earlier, later in pairwise(rates))
    assert (up >= 2, sum(rates == peak) >= 2, down >= 2) == (True, True, True), rates
    momenta = [curve for name, curve in reference.schedule.items() if name.endswith("momentum")]
    for curve in momenta:
        assert sum(curve < config.optimizer.momentum_end) >= 2
        assert sum(curve == config.optimizer.momentum_end) >= 2
    if reference.evaluation["bytes"]:
        batches = [data.validation.batch(number) for number in range(config.train.eval_batches)]
        scored = [batch["target_bytes"][batch["targets"] >= 0] for batch in batches]
        assert sum((x == 0).sum() for x in scored) >= 2
        assert sum((x > 0).sum() for x in scored) >= 2


def test_a_float32_check_knows_its_idle_numbers_too():
    config = subject("linear", "float32", 3)
    found = {idle.number for idle in idle_of(replace(config, optimizer=replace(config.optimizer, eps=1e-30)))}
    assert "--eps" in found
    assert "--matrix-lr" not in found
    assert Idle("--head-lr", WITHOUT_PART).number in found
