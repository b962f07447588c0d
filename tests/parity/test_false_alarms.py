"""A port that is right is called right: no alarm at seeds and configurations that nobody chose.

Depth, heads, key/value heads, channels, length, vocabulary, rotary table, masks, accumulation, optimizer, schedules,
clipping, remat and devices (1, 2, 4) are drawn, two in eight are not gpt but another model; float64.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable

import pytest

from parity.child import child_environment
from tests.helpers.random_configs import DEVICES, devices_of, draw

TRIALS, BLOCK = 200, 20


def alarms(numbers: Iterable[int]) -> list[str]:
    """What the checks of these configurations found, and those that compared too little to have found anything."""
    found = []
    for devices in DEVICES:
        chosen = [number for number in numbers if devices_of(number) == devices]
        if not chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-m", "tests.helpers.random_configs", *map(str, chosen)],
                env={**child_environment(True, devices), "JAX_COMPILATION_CACHE_DIR": folder},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert [result["number"] for result in results] == chosen
        for result in results:
            if result["verdict"] != "agrees" or not all(result["compared"].values()):
                found.append(f"{result['number']} on {devices} devices: {result['sentence']} {result['compared']}")
    return found


def test_configurations_are_drawn_once_and_for_all_and_differ():
    assert draw(7) == draw(7)
    drawn = [draw(number) for number in range(TRIALS)]
    assert len({repr(config) for config in drawn}) == TRIALS
    assert {config.model_name for config in drawn} == {"gpt", "linear", "embedding", "mlp"}
    shapes = {(c.model.depth, c.model.kv_heads, c.model.heads) for c in drawn if c.model_name == "gpt"}
    assert len(shapes) > 10
    assert {devices_of(number) for number in range(TRIALS)} == {1, 2, 4}


@pytest.mark.slow
def test_five_random_configurations_raise_no_alarm():
    assert alarms([0, 4, 8, 12, 13]) == []


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, TRIALS, BLOCK))
def test_random_configurations_raise_no_alarm(first):
    assert alarms(range(first, first + BLOCK)) == []
