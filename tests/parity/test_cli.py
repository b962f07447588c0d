"""`python -m parity`: exit codes 0, 1 and 2, one line on bad input, and the files that are written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import parity.check
from bench.__main__ import MEASUREMENTS
from jax_impl import step
from parity.cli import main
from parity.faults.catalogue import CATALOGUE
from parity.faults.fault import swapped
from parity.faults.names import fault_names
from tests.parity.test_result import a_result
from twinstep.errors import run_command

CHECK = ["check", "linear", "--steps", "3"]
REPORT = {"parity.json", "report.html", "errors.png", "losses.png"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder to work in: reports go to the working directory unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


BAD = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["chekc"], "invalid choice: 'chekc'"),
    "unknown model": (["check", "gtp"], "unknown model 'gtp'; choose one of"),
    "unknown dtype": (["check", "--dtype", "float16"], "'float16'"),
    "steps that are no number": (["check", "--steps", "ten"], "ten"),
    "too few steps": (["check", "--steps", "2"], "--steps is 2; a check needs at least 3"),
    "unknown platform": (["check", "--platform", "rocm"], "invalid choice: 'rocm'"),
    "unknown precision": (["check", "--matmul-precision", "tf32"], "'tf32'"),
    "no devices": (["check", "--devices", "0"], "--devices is 0; it must be at least 1"),
    "devices that cannot share": (["check", "linear", "--devices", "3"], "= 16 is not divisible by 3 devices"),
    "no checkpoint": (["check", "--run", "nowhere"], "nowhere"),
    "a folder of others": ([*CHECK, "--out-dir", "."], "holds notes.txt and no report; pass --out-dir"),
    "a file for a folder": ([*CHECK, "--out-dir", "notes.txt"], "cannot use --out-dir notes.txt"),
    "unknown fault": (["faults", "--only", "mask off"], "no fault is called 'mask off'; perhaps 'mask off by one'"),
    "fault of another model": (["faults", "--model", "mlp", "--only", "mask off by one"], "no fault of mlp is called"),
    "unknown model of faults": (["faults", "--model", "gtp"], "invalid choice: 'gtp'"),
    "unknown model of shapes": (["shapes", "gtp"], "unknown model 'gtp'"),
    "unknown flag": ([*CHECK, "--tolerance", "1"], "--tolerance.*--help"),
    "unknown flag of faults": (["faults", "--tolerance", "1"], "unrecognized arguments: --tolerance 1 .*--help"),
    "a flag without use": (["check", "--init-from", "x"], "--init-from has no use in a check; pass --run"),
    "a horizon": (["check", "--target-flops", "1e12"], "--target-flops has no use in a check; pass --steps"),
    "one device for several": (["check", "--parallel", "jit", "--devices", "2"], "--parallel jit uses one device"),
    "dropout of several devices": (["check", "mlp", "--no-shared-dropout", "--devices", "2"], "masks of its own"),
    "all and a flag": (["check", "all", "--steps", "3"], "has its own configurations"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(case, place, capsys):
    argv, says = BAD[case]
    (place / "notes.txt").write_text("mine")
    assert run_command(main, argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert re.search(says, line), line
    assert [path.name for path in place.rglob("*") if path.is_file()] == ["notes.txt"]


LOADED = """
import sys
from {module} import main
from twinstep.errors import run_command
code = run_command(main, {argv!r})
print(code, *{{"jax", "torch"}} & set(sys.modules))
"""


@pytest.mark.parametrize(("module", "argv"), [("parity.cli", ["faults"]), ("bench.__main__", [])])
def test_a_wrong_name_is_answered_with_all_names_before_a_framework_is_loaded(module, argv, place):
    program = LOADED.format(module=module, argv=[*argv, "--only", "nonsense"])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "2\n"
    (line,) = done.stderr.splitlines()
    names = [fault.name for fault in CATALOGUE] if module == "parity.cli" else MEASUREMENTS["cpu"]
    listed = line.partition("choose from ")[2]
    assert all(name in listed for name in names)
    assert list(place.iterdir()) == []


def test_the_names_are_those_of_the_catalogue():
    assert sorted(fault_names(None)) == sorted(fault.name for fault in CATALOGUE)
    assert sorted(fault_names("mlp")) == sorted(fault.name for fault in CATALOGUE if fault.model == "mlp")


def test_agreement_is_exit_code_0_and_a_report_in_the_default_folder(place, capsys):
    assert run_command(main, CHECK) == 0
    assert "✓ The JAX port of linear agrees with PyTorch in float64" in capsys.readouterr().out
    assert {path.name for path in (place / "parity-report").iterdir()} == REPORT
    found = json.loads((place / "parity-report" / "parity.json").read_text())
    assert found["verdict"] == "agrees"
    assert found["command"] == "python -m parity check linear --steps 3"


def test_a_divergence_is_exit_code_1_and_named_first(place, capsys):
    micro_step = step.micro_step

    def faulty(*args):
        sums, buffers, grads = micro_step(*args)
        return sums, buffers, jax.tree.map(lambda g: 2 * g, grads)

    with swapped(micro_step, faulty):
        assert run_command(main, [*CHECK, "--out-dir", "out"]) == 1
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("✗ The JAX port of linear diverges from PyTorch in float64")
    first = json.loads((place / "out" / "parity.json").read_text())["first_divergence"]
    assert (first["stage"], first["tensor"], first["step"]) == ("gradients", "linear.weight", 0)


def test_a_port_that_raises_is_exit_code_1_with_the_reason_and_a_report(place, capsys):
    def raising(*args):
        raise TypeError("two strings cannot be multiplied")

    with swapped(step.micro_step, raising):
        assert run_command(main, [*CHECK, "--out-dir", "out"]) == 1
    assert "TypeError: two strings cannot be multiplied" in " ".join(capsys.readouterr().out.split())
    assert "two strings cannot be multiplied" in (place / "out" / "report.html").read_text()
    found = json.loads((place / "out" / "parity.json").read_text())
    assert found["first_divergence"]["stage"] == "loss"
    assert found["stages"]["activations"]["verdict"] == "agrees"


def test_a_new_report_replaces_an_old_one(place, capsys, monkeypatch):
    asked = []

    def remembered(request):
        asked.append(request)
        return a_result(None)

    monkeypatch.setattr(parity.check, "check", remembered)
    for seed in "12":
        assert run_command(main, ["check", "mlp", "--dtype", "bfloat16", "--seed", seed, "--devices", "2"]) == 0
    found = json.loads((place / "parity-report" / "parity.json").read_text())
    assert found["command"].endswith("--dtype bfloat16 --seed 2 --devices 2")
    assert [(r.seeds, r.devices, r.config.train.seed, r.config.train.dtype) for r in asked] == [
        (8, 2, 1, "bfloat16"),
        (8, 2, 2, "bfloat16"),
    ]
