"""Each room runs without what it must not know: every module imports, and one linear step trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALL_OF_JAX = ("jax", "jaxlib", "flax", "optax", "orbax", "grain")

# Importing a blocked package fails as if it were not installed.
PROGRAM = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
import {room}
modules = ["{room}"] + [m.name for m in pkgutil.walk_packages({room}.__path__, "{room}.")]
for name in modules:
    importlib.import_module(name)
assert not set({blocked!r}) & {{name.partition(".")[0] for name in sys.modules}}
if {train!r}:
    from twinstep.errors import run_command
    from {room}.train import main
    argv = ["linear", "--steps", "1", "--batch-size", "8", "--eval-batches", "1", "--out-dir", sys.argv[1]]
    assert run_command(main, argv) == 0
print("imported", *modules)
"""

CASES = [
    pytest.param("twinstep", ("torch", *ALL_OF_JAX), False, id="twinstep knows neither"),
    pytest.param("jax_impl", ("torch",), True, id="jax_impl without torch"),
    pytest.param("torch_ref", ALL_OF_JAX, True, id="torch_ref without jax"),
]


def run_without(room: str, blocked: tuple[str, ...], train: bool, place: Path) -> subprocess.CompletedProcess:
    program = PROGRAM.format(room=room, blocked=blocked, train=train)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", program, str(place / "run")]
    return subprocess.run(argv, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("room", "blocked", "train"), CASES)
def test_a_room_runs_without_what_it_must_not_know(room, blocked, train, tmp_path):
    process = run_without(room, blocked, train, tmp_path)
    assert process.returncode == 0, process.stderr
    modules = process.stdout.splitlines()[-1].split()[1:]
    files = list((ROOT / room).rglob("*.py"))
    assert len(modules) == len(files), "a module was not imported"


def test_a_blocked_package_is_missed(tmp_path):
    process = run_without("torch_ref", ("torch",), False, tmp_path)
    assert process.returncode != 0
    assert "No module named 'torch'" in process.stderr
