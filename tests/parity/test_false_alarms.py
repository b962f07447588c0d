"""A port that is right is called right: no alarm at seeds and configurations that nobody chose.

In float64, depth, heads, key/value heads, channels, length, vocabulary, rotary table, masks, accumulation, optimizer,
schedules, clipping, remat and devices (1, 2, 4) are drawn, two in eight are not gpt but another model. In float32 and
bfloat16 the seeds are: each run is a check of eight.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import pairwise

import pytest

from parity.child import child_environment
from tests.helpers import low_precision
from tests.helpers.random_configs import DEVICES, devices_of, draw
from twinstep.config import MODELS

TRIALS, BLOCK = 200, 20
LOW_TRIALS = 25  # of each model in each type: 200


def results_of(module: str, arguments: Iterable[object], x64: bool, devices: int) -> list[dict]:
    """What the checks of a process printed."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", f"tests.helpers.{module}", *map(str, arguments)],
            env={**child_environment(x64, devices), "JAX_COMPILATION_CACHE_DIR": folder},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(results: list[dict], where: str) -> list[str]:
    """Of the runs that did not agree, and those that compared too little to have found anything."""
    return [
        f"{result['number']} {where}: {result['sentence']} {result['compared']}"
        for result in results
        if result["verdict"] != "agrees"
        or not all(count for stage, count in result["compared"].items() if stage != "generation")  # not asked for
    ]


def alarms(numbers: Iterable[int]) -> list[str]:
    """What the float64 checks of these configurations found."""
    found = []
    for devices in DEVICES:
        chosen = [number for number in numbers if devices_of(number) == devices]
        if not chosen:
            continue
        results = results_of("random_configs", chosen, True, devices)
        assert [result["number"] for result in results] == chosen
        found += said(results, f"on {devices} devices")
    return found


def low_alarms(model: str, dtype: str, numbers: Iterable[int]) -> list[str]:
    """What the checks of a model from these seeds found."""
    chosen = list(numbers)
    results = results_of("low_precision", (model, dtype, *chosen), False, 1)
    assert [result["number"] for result in results] == chosen
    return said(results, f"of {model} in {dtype}")


def test_configurations_are_drawn_once_and_for_all_and_differ():
    assert draw(7) == draw(7)
    drawn = [draw(number) for number in range(TRIALS)]
    assert len({repr(config) for config in drawn}) == TRIALS
    assert {config.model_name for config in drawn} == {"gpt", "linear", "embedding", "mlp"}
    shapes = {(c.model.depth, c.model.kv_heads, c.model.heads) for c in drawn if c.model_name == "gpt"}
    assert len(shapes) > 10
    assert {devices_of(number) for number in range(TRIALS)} == {1, 2, 4}


def test_no_seed_serves_two_runs_in_low_precision():
    firsts = [low_precision.draw("linear", "bfloat16", number).train.seed for number in range(LOW_TRIALS)]
    assert all(later - earlier >= 8 for earlier, later in pairwise(firsts))


@pytest.mark.slow
def test_five_random_configurations_raise_no_alarm():
    assert alarms([0, 4, 8, 12, 13]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dtype"), [("linear", "float32"), ("mlp", "bfloat16"), ("embedding", "bfloat16")])
def test_a_run_in_low_precision_raises_no_alarm(model, dtype):
    assert low_alarms(model, dtype, [0]) == []


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, TRIALS, BLOCK))
def test_random_configurations_raise_no_alarm(first):
    assert alarms(range(first, first + BLOCK)) == []


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_runs_in_low_precision_raise_no_alarm(model, dtype):
    assert low_alarms(model, dtype, range(LOW_TRIALS)) == []
