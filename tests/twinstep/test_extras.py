"""Where a package is missing that only an extra brings, every command says in one line how to install it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from twinstep.extras import EXTRAS

ROOT = Path(__file__).parents[2]

# Python runs this file before the program: importing the package fails as if it were not installed.
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""

COMMANDS = [
    ("torch", "-m torch_ref.train"),
    ("torch", "-m torch_ref.generate --run nowhere"),
    ("torch", "-m parity check"),
    ("torch", "-m parity faults"),
    ("torch", "-m parity shapes"),
    ("torch", "-m parity convert a b"),
    ("torch", "-m bench"),
    ("torch", "-m docs.runs"),
    ("transformers", "-m docs.runs"),
    ("torch", "-m examples.check_your_port"),
    ("libtpu", "-m jax_impl.aot"),
    ("jax_cuda13_plugin", "-m jax_impl.aot --topology h100:1x1x8"),
]


def run_without(package: str, place: Path, *argv: str) -> subprocess.CompletedProcess:
    (place / "sitecustomize.py").write_text(BLOCK.format(package=package))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}
    environment.pop("TPU_LIBRARY_PATH", None)
    return subprocess.run([sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("package", "command"), COMMANDS)
def test_a_command_whose_package_is_missing_says_in_one_line_how_to_install_it(package, command, tmp_path):
    done = run_without(package, tmp_path, *command.split())
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: No module named {package!r}")
    assert line.endswith(f": run pip install -e '.[{EXTRAS[package]}]' in {ROOT}")


def test_help_needs_no_framework(tmp_path):
    assert run_without("torch", tmp_path, "-m", "parity", "--help").returncode == 0


@pytest.mark.parametrize("imports", ["import torch_ref", "from parity import compare"])
def test_a_program_that_imports_us_gets_an_import_error(imports, tmp_path):
    program = f"try:\n    {imports}\nexcept ImportError as error:\n    print(error)"
    done = run_without("torch", tmp_path, "-c", program)
    assert "pip install -e '.[torch]'" in done.stdout, done.stderr


def test_each_package_is_in_the_extra_that_is_named():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["tpu-aot"] == ["twinstep[tpu]"]
    assert extras["tpu"] == ["jax[tpu]"]  # which pins libtpu
    assert extras["gpu-aot"] == ["jax[cuda13-local]"]  # which pins jax_cuda13_plugin
    for package, extra in EXTRAS.items():
        if package not in ("libtpu", "jax_cuda13_plugin"):
            assert package in [re.match(r"[\w-]+", requirement)[0] for requirement in extras[extra]]


def test_no_message_names_a_package_that_pypi_does_not_have():
    rooms = ("twinstep", "jax_impl", "torch_ref", "parity", "bench", "docs", "examples", "tools")
    sources = [path for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".md")]
    assert [path for path in [ROOT / "README.md", *sources] if "install 'twinstep" in path.read_text()] == []
