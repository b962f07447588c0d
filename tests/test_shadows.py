"""A user's own file or folder with the name of one of our packages is named in one line where Python finds it first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(place: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    argv = (sys.executable, *argv)
    return subprocess.run(argv, cwd=place, env=environment, capture_output=True, text=True, check=False)


def a_module(place: Path, name: str) -> Path:
    path = place / f"{name}.py"
    path.write_text("answer = 42\n")
    return path


def a_package(place: Path, name: str) -> Path:
    (place / name).mkdir()
    (place / name / "__init__.py").write_text("answer = 42\n")
    return place / name


CASES = [
    ("jax_impl.train", "twinstep", a_module),
    ("torch_ref.train", "twinstep", a_module),
    ("torch_ref.generate", "twinstep", a_package),
    ("parity", "twinstep", a_module),
    ("parity", "jax_impl", a_package),
    ("parity", "torch_ref", a_module),
]


@pytest.mark.parametrize(("module", "name", "make"), CASES)
def test_a_command_says_in_one_line_what_stands_in_its_way(module, name, make, tmp_path):
    path = make(tmp_path, name)
    process = run(tmp_path, "-m", module, "--help")
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith(f"error: {path} is imported in place of our package {name} ({ROOT / name}); run ")


def test_the_way_out_that_it_names_works(tmp_path):
    a_module(tmp_path, "twinstep")
    process = run(tmp_path, "-P", "-m", "parity", "--help")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("usage: python -m parity")


@pytest.mark.parametrize("room", ["jax_impl", "torch_ref", "parity"])
def test_a_script_named_like_our_package_is_named_by_the_import(room, tmp_path):
    (tmp_path / "twinstep.py").write_text(f"import {room}\n")
    process = run(tmp_path, "twinstep.py")
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 1
    assert last.startswith(f"ImportError: {tmp_path / 'twinstep.py'} is imported in place of our package twinstep")


def test_other_names_are_in_nobodys_way(tmp_path):
    for name in ("parity", "twinsteps", "jax_implementation"):
        a_package(tmp_path, name)
    process = run(tmp_path, "-m", "torch_ref.train", "--help")
    assert process.returncode == 0, process.stderr


def test_a_link_to_our_own_folder_is_ours(tmp_path):
    for name in ("twinstep", "parity", "jax_impl", "torch_ref"):
        (tmp_path / name).symlink_to(ROOT / name)
    process = run(tmp_path, "-m", "parity", "--help")
    assert process.returncode == 0, process.stderr
