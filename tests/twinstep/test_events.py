from dataclasses import replace

from twinstep.events import due, evaluation_due
from twinstep.presets import DEFAULTS


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
