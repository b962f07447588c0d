"""The wheel, installed in a fresh environment, trains from another folder; it holds the rooms and nothing else."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "site")
SHIPPED = ("twinstep", "jax_impl", "torch_ref", "parity")
FOR_A_CHECKOUT = ("bench", "docs", "examples", "tests")

PROGRAM = f"""
import importlib.util
import sys
from importlib import metadata, resources
import twinstep
print(twinstep.__file__)
assert twinstep.__version__ == metadata.version("twinstep") == "{{version}}"
for room in {SHIPPED}:
    assert (resources.files(room) / "py.typed").is_file(), f"{{{{room}}}} has no py.typed"
for room in {FOR_A_CHECKOUT}:
    spec = importlib.util.find_spec(room)  # Haiku, which the tests' environment lends, has a docs of its own
    places = spec.submodule_search_locations if spec else []
    assert not any(place.startswith(sys.prefix) for place in places), f"{{{{room}}}} is installed"
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def build(place: Path) -> Path:
    """The wheel, from a copy, so that nothing is left in the checkout and nothing left there gets in."""
    shutil.copytree(ROOT, place / "sources", ignore=NOT_SOURCES)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", place, place / "sources", cwd=place)
    return next(place.glob("twinstep-*.whl"))


def install(wheel: Path, place: Path) -> Path:
    """The interpreter of a fresh environment: the wheel, and what it depends on from the environment of the tests.

    A line in a .pth file lends that environment's packages and not its own .pth files, so an editable install of
    twinstep there stays unseen.
    """
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install")
    run(*pip, "--no-index", "--no-deps", wheel, cwd=place)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.slow
def test_an_installed_wheel_has_the_typed_rooms_alone_and_trains_from_another_folder(tmp_path):
    wheel = build(tmp_path)
    python = install(wheel, tmp_path / "fresh")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    imported = run(python, "-c", PROGRAM.format(version=wheel.name.split("-")[1]), cwd=elsewhere).strip()
    assert Path(imported).is_relative_to(tmp_path / "fresh"), f"{imported} is not the installed package"
    run(python, "-m", "jax_impl.train", "linear", "--steps", "2", "--out-dir", "run", cwd=elsewhere)
    assert (elsewhere / "run" / "metrics.jsonl").is_file()
    assert (elsewhere / "run" / "checkpoints").is_dir()
