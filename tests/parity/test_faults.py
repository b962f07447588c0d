"""The engine is sharp: what is wrong is seen where it is wrong, and what is only written otherwise is not seen."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import jax
import pytest

from parity.faults import run
from parity.faults.catalogue import CATALOGUE
from parity.faults.fault import Fault
from parity.faults.run import choose, command_of, config_of, inject, run_catalogue
from parity.result import STAGES
from twinstep.config import MODELS

CHANGING = [fault for fault in CATALOGUE if fault.stage is not None]
EQUIVALENT = [fault for fault in CATALOGUE if fault.stage is None]

# Of every stage the first fault that needs neither gpt, which takes long to compile, nor several devices. Only gpt
# generates; `test_generation.py` has its faults.
OF_STAGES = [
    next(fault for fault in CATALOGUE if fault.stage == stage and fault.model != "gpt" and fault.devices == 1)
    for stage in STAGES
    if stage != "generation"
]


def test_the_catalogue_is_large_and_each_fault_says_what_it_is():
    assert len(CHANGING) >= 180
    assert len(EQUIVALENT) >= 30
    assert {fault.stage for fault in CHANGING} == set(STAGES)
    assert {fault.model for fault in CHANGING} == set(MODELS)
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE)
    assert all(fault.about for fault in CATALOGUE)
    assert all(fault.equivalent for fault in EQUIVALENT)
    assert not any(fault.equivalent for fault in CHANGING)


def test_the_flags_of_a_fault_are_those_of_the_check_and_of_the_trainers():
    fault = Fault("idle", "linear", "loss", "", nullcontext, flags="--devices 2 --head sigmoid --dataset breast_cancer")
    assert fault.devices == 2
    assert config_of(fault).model.head == "sigmoid"
    flags = "--devices 2 --head sigmoid --dataset breast_cancer"
    assert command_of(fault) == f"python -m parity check linear --steps {run.STEPS} {flags}"


def test_faults_that_share_a_configuration_run_one_after_another():
    configs = [config_of(fault) for fault in choose(None, None)]
    runs = [config for config, before in zip(configs, [None, *configs], strict=False) if config != before]
    assert len(runs) == sum(config not in configs[:i] for i, config in enumerate(configs))


def test_a_real_fault_is_caught_one_that_does_nothing_is_missed_and_the_command_fails(monkeypatch, tmp_path, capsys):
    real = next(fault for fault in CATALOGUE if fault.name == "loss in bits")
    idle = Fault("idle", "linear", "loss", "changes nothing", nullcontext)
    monkeypatch.setattr(run, "CATALOGUE", (real, idle))
    cache = jax.config.jax_compilation_cache_dir
    assert run_catalogue("linear", None, tmp_path) == 1
    assert jax.config.jax_compilation_cache_dir == cache
    first, second = json.loads((tmp_path / "faults.json").read_text())
    assert (first["found_stage"], second["found_stage"]) == ("loss", None)
    assert first["ratio_to_budget"] > 1e10
    assert first["ratios"]["activations"] <= 1 < first["ratios"]["loss"]
    assert 0 < second["ratio_to_budget"] <= 1
    said = capsys.readouterr().out
    assert said.startswith("✗ 1 of 2 faults that change a number caught, 1 at the right stage")
    assert {path.name for path in tmp_path.iterdir()} == {"faults.json", "faults.html", "faults.png"}


@pytest.mark.slow
def test_a_fault_of_each_stage_is_caught_there():
    """Those of one configuration one after another: they share the reference."""
    outcomes = list(inject(sorted(OF_STAGES, key=lambda fault: repr(config_of(fault)))))
    elsewhere = [f"{o.fault.name} ({o.fault.stage}): {o.result.sentence}" for o in outcomes if o.found != o.fault.stage]
    assert not elsewhere
    assert {outcome.found for outcome in outcomes} == {*STAGES} - {"generation"}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("naive softmax", "key heads repeated"), marks=pytest.mark.slow),
        pytest.param(("AdamW by hand", "momentum transposed"), marks=pytest.mark.slow),
        pytest.param(("norm before rotary",), marks=pytest.mark.long),
    ],
)
def test_what_is_only_written_otherwise_stays_within_budget(names):
    for outcome in inject([fault for name in names for fault in choose(None, name)]):
        assert outcome.fault in EQUIVALENT
        assert outcome.found is None, outcome.result.sentence


@pytest.mark.slow
def test_a_fault_of_several_devices_is_caught_by_the_command(tmp_path):
    command = ["faults", "--only", "sum for mean over devices", "--out-dir", str(tmp_path / "out")]
    alone = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-m", "parity", *command], env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out" / "faults.json").read_text())
    assert (row["flags"], row["found_stage"]) == ("--devices 2", "gradients")
