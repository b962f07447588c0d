import json
from dataclasses import replace
from pathlib import Path

import pytest

from twinstep.config import CorpusConfig
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS
from twinstep.progress import (
    check_config,
    due,
    evaluation_due,
    finished,
    first_facts,
    note_evaluation,
    seal,
    take_up_extension,
    unseal,
)

GPT = DEFAULTS["gpt"]


def evaluations(**train) -> list[int]:
    config = replace(DEFAULTS["linear"], train=replace(DEFAULTS["linear"].train, **train))
    return [step for step in range(1, config.train.steps + 1) if evaluation_due(config, step)]


def test_what_is_due_every_so_often_is_due_at_multiples_and_zero_is_never():
    assert [step for step in range(1, 10) if due(step, 3)] == [3, 6, 9]
    assert not any(due(step, 0) for step in range(10))


def test_evaluations_come_at_multiples_and_after_the_last_step():
    assert evaluations(steps=10, eval_every=4) == [4, 8, 10]
    assert evaluations(steps=8, eval_every=4) == [4, 8]


def test_without_an_interval_there_is_one_half_way_and_one_at_the_end():
    assert evaluations(steps=10, eval_every=0) == [5, 10]
    assert evaluations(steps=1, eval_every=0) == [1]


def test_the_best_evaluation_is_remembered_and_those_since_are_counted():
    facts = first_facts(GPT)
    assert [note_evaluation(facts, step, loss) for step, loss in ((0, 3.0), (5, 2.0), (10, 2.0), (15, 2.5))] == [
        *(True, True, False, False)
    ]
    assert (facts["best_step"], facts["best_val_loss"], facts["evaluations_without_improvement"]) == (5, 2.0, 2)


def test_a_run_is_over_at_its_last_step_or_out_of_patience():
    facts = first_facts(GPT)
    patient = replace(GPT, train=replace(GPT.train, steps=10, patience=2))
    assert [finished(facts, patient, step) for step in (0, 9, 10)] == [False, False, True]
    facts["evaluations_without_improvement"] = 2
    assert finished(facts, patient, 3)
    assert not finished(facts, replace(GPT, train=replace(GPT.train, steps=10, patience=0)), 3)


def test_facts_come_back_from_json_as_they_were_sealed():
    facts = {**first_facts(GPT), "best_val_loss": 0.1 + 0.2}
    assert unseal(json.loads(json.dumps(seal(facts)))) == facts


@pytest.mark.parametrize("damage", [lambda f: f.update(best_step=4), lambda f: f.pop("sha256"), lambda f: f.clear()])
def test_facts_that_are_not_those_that_were_sealed_are_refused(damage):
    sealed = seal(first_facts(GPT))
    damage(sealed)
    with pytest.raises(ValueError, match=r"checksum|SHA-256"):
        unseal(sealed)
    with pytest.raises(ValueError, match="checksum"):
        unseal(["no", "facts"])


def test_a_checkpoint_of_another_configuration_is_refused_by_name():
    facts = first_facts(GPT)
    check_config(facts, GPT, Path("run"))
    moved = replace(GPT, data=replace(GPT.data, data="elsewhere", cache_dir="there"))
    check_config(facts, moved, Path("run"))
    with pytest.raises(UserError, match="has seed 5, but its checkpoint was made with 0"):
        check_config(facts, replace(GPT, train=replace(GPT.train, seed=5)), Path("run"))
    with pytest.raises(UserError, match="has sequence_len 8, but its checkpoint was made with 256"):
        check_config(facts, replace(GPT, data=CorpusConfig(sequence_len=8)), Path("run"))
    with pytest.raises(UserError, match="checkpoint of another run"):
        check_config({}, GPT, Path("run"))


def test_an_extension_is_taken_up_once_and_counts_evaluations_anew():
    def lr_multiplier(config, steps, index):
        return index / steps

    facts = {**first_facts(GPT), "evaluations_without_improvement": 2}
    assert take_up_extension(facts, GPT, 600, lr_multiplier) == ""
    assert facts == {**first_facts(GPT), "evaluations_without_improvement": 2}

    longer = replace(GPT, train=replace(GPT.train, steps=1000), output=replace(GPT.output, extend_to=1000))
    check_config(facts, longer, Path("run"))
    with pytest.raises(UserError, match="has seed 5"):
        check_config(facts, replace(longer, train=replace(longer.train, seed=5)), Path("run"))
    says = take_up_extension(facts, longer, 701, lr_multiplier)
    assert "extended from 700 to 1000 steps" in says
    assert "from 1 to 0.7 of its peak" in says
    expected = {**first_facts(longer), "extended_to": 1000, "extended_from": [700]}
    assert facts == expected
    assert take_up_extension(facts, longer, 800, lr_multiplier) == ""
    assert facts == expected
    check_config(facts, longer, Path("run"))
    with pytest.raises(UserError, match="has steps 1001, but its checkpoint was made with 1000"):
        check_config(facts, replace(longer, train=replace(longer.train, steps=1001)), Path("run"))
