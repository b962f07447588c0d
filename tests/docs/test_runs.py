"""What the pages show is what the scripts print today."""

import contextlib
import io
import runpy
import sys

import pytest
import torch

from docs.runs.__main__ import BY_HAND, OUTPUT, names, run

# They fix the number of devices before JAX starts, or take long: in a process of their own, with the slow tests.
APART = {"trainer", "many_devices", "muon", "check_your_port", "hugging_face_model"}
QUICK = [name for name in names() if name not in APART]


def assert_printed(name: str, printed: str) -> None:
    kept = (OUTPUT / f"{name}.txt").read_text()
    assert printed == kept, f"docs/output/{name}.txt is not what the script prints: run python -m docs.runs {name}"


@pytest.fixture
def one_thread():
    """As `python -m docs.runs` runs them; the steps are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", QUICK)
def test_a_page_shows_what_its_script_prints(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TWINSTEP_IMAGES", str(tmp_path))
    monkeypatch.delitem(sys.modules, f"docs.runs.{name}", raising=False)  # other tests import parts of it
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_module(f"docs.runs.{name}", run_name="__main__")
    assert_printed(name, printed.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(APART))
def test_a_page_shows_what_its_script_prints_apart(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TWINSTEP_IMAGES", str(tmp_path))
    assert_printed(name, run(name))


def test_every_output_has_its_script():
    assert {path.stem for path in OUTPUT.iterdir()} == set(names()) | BY_HAND
