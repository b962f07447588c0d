"""The examples run as they stand; those that the pages show are run by the pages' scripts."""

import json
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest

import jax_impl.train
from docs.runs.__main__ import HERE
from examples import many_steps_one_dispatch, train_here_generate_there

APART = {"many_steps_one_dispatch", "train_here_generate_there"}


def test_every_example_is_run_by_a_page_or_here():
    scripts = "\n".join(path.read_text() for path in HERE.glob("*.py"))
    for path in (HERE.parent.parent / "examples").glob("*.py"):
        assert path.stem in APART or path.stem in scripts, f"nothing runs {path.name}"


@pytest.mark.slow
def test_a_run_trained_in_jax_generates_the_same_text_in_torch(tmp_path: Path):
    (tmp_path / "one.txt").write_text("the same training step, written twice. " * 400)
    (tmp_path / "two.txt").write_text("and proved to be the same. " * 400)
    in_jax, in_torch = train_here_generate_there.main(str(tmp_path))
    assert in_jax.startswith("torch")
    assert len(in_jax) > len("torch")
    assert in_jax == in_torch


@pytest.mark.slow
def test_many_steps_in_one_dispatch_are_those_of_the_training_command(tmp_path: Path):
    losses, accuracy = many_steps_one_dispatch.main()
    jax_impl.train.main(["linear", "--log-every", "1", "--out-dir", str(tmp_path / "run")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses, [line["loss"] for line in lines if "loss" in line], rtol=1e-5)
    assert accuracy == lines[-1]["val_accuracy"]
    assert accuracy >= 0.96


@pytest.mark.slow
@pytest.mark.parametrize("room", ["jax_impl", "torch_ref"])
def test_the_notebook_runs_from_top_to_bottom_in_either_framework(room, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    cells = (HERE.parents[1] / "examples" / "train_in_a_notebook.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(cells.replace("jax_impl", room), as_version=4)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert printed.count("at step 60, in runs/") == 2
    assert printed.count("def ") >= 2
    assert (tmp_path / "runs" / f"{room.partition('_')[0]}-gpt-2" / "loss.png").exists()
