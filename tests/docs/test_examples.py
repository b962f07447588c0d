"""The examples run as they stand; those that the pages show are run by the pages' scripts."""

from pathlib import Path

import pytest

from docs.runs.__main__ import HERE
from examples import train_here_generate_there

APART = {"train_here_generate_there"}


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
