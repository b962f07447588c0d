"""A damaged checkpoint is refused or, where the damage touches nothing, restored to the last bit; never executed."""

import gc
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import jax_impl.checkpoint
import torch_ref.checkpoint
from jax_impl.models import make_model as make_jax_model
from jax_impl.optimizer import make_optimizer
from jax_impl.step import init_state
from jax_impl.tree import flatten
from tests.helpers.trust import CHECKPOINT, FRAMEWORKS, arguments, train
from torch_ref.models import make_model as make_torch_model
from torch_ref.optimizer import setup_optimizers
from twinstep.cli import read_run_config
from twinstep.errors import UserError
from twinstep.init import initial_weights
from twinstep.run_dir import CHECKPOINTS

STEP = 2

# orbax takes a tenth of a second for each file; the slow tests damage every one of its thirty.
IN_BOTH = [pytest.param("jax", marks=pytest.mark.slow), "torch"]

# The coroutines that orbax drops when several arrays cannot be read raise once more when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_dropped_coroutines():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each framework: two optimizers, and checkpoints of two steps."""
    place = tmp_path_factory.mktemp("runs")
    for framework in FRAMEWORKS:
        argv = arguments("linear", place, "--steps", str(STEP), "--save-every", "1")
        assert train(framework, [*argv, "--out-dir", str(place / framework)]) == 0
    return {framework: place / framework for framework in FRAMEWORKS}


@pytest.fixture(scope="module")
def readers() -> dict[str, Callable[[Path], dict[str, bytes]]]:
    """For each framework, everything that a checkpoint restores, as bytes by name."""
    like: list[Any] = []

    def read_jax(run: Path) -> dict[str, bytes]:
        config = read_run_config(run)
        if not like:
            model = make_jax_model(config)
            shapes = {name: leaf.shape for name, leaf in flatten(model.params).items()}
            like.append(init_state(model, make_optimizer(config, model.params), initial_weights(shapes, 0), 0))
        state, facts = jax_impl.checkpoint.restore(run, config, like[0], STEP)
        arrays = dict(jax.tree_util.tree_leaves_with_path(state))
        return {str(path): np.asarray(array).tobytes() for path, array in arrays.items()} | as_bytes(facts)

    def read_torch(run: Path) -> dict[str, bytes]:
        config = read_run_config(run)
        model = make_torch_model(config)
        optimizers = setup_optimizers(config, model)
        facts = torch_ref.checkpoint.restore(run, config, model, optimizers, STEP)
        tensors = {**model.state_dict(), **torch_ref.checkpoint.training_tensors(model, optimizers)}
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} | as_bytes(facts)

    def as_bytes(facts: dict[str, Any]) -> dict[str, bytes]:
        return {name: repr(value).encode() for name, value in facts.items()}

    return {"jax": read_jax, "torch": read_torch}


def files(run: Path) -> list[Path]:
    return sorted(path for path in (run / CHECKPOINTS / str(STEP)).rglob("*") if path.is_file())


def damaged_copies(run: Path, to: Path, change: Callable[[Path], None]):
    """For each file of the newest checkpoint, a copy of the run in which `change` was done to that file."""
    for path in files(run):
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(run, to)
        change(to / path.relative_to(run))
        yield path, to


def refused_or_harmless(read: Callable[[Path], dict[str, bytes]], run: Path, expected: dict[str, bytes]) -> bool:
    """True if refused in one line, False if everything was restored as it was saved; all else is a failure."""
    complaint, found = said_by(lambda: read(run))
    if complaint is None:
        assert found == expected, "damage that was not seen has changed what is restored"
        return False
    assert "\n" not in complaint
    assert "go back to step 1" in complaint or "config" in complaint, complaint
    return True


def said_by(read: Callable[[], Any]) -> tuple[str | None, Any]:
    """The message of the UserError that `read` raises, or None and what it returns."""
    try:
        return None, read()
    except UserError as error:
        return str(error), None


def flip(path: Path, place: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[place.randrange(len(content))] ^= 1 << place.randrange(8)
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    "times", [1, pytest.param(4, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.long)]
)
def test_a_flipped_bit_is_seen_or_harmless(framework, times, runs, readers, tmp_path):
    expected, place = readers[framework](runs[framework]), random.Random(times)
    seen = 0
    for _ in range(times):
        for _, run in damaged_copies(runs[framework], tmp_path / "copy", lambda path: flip(path, place)):
            seen += refused_or_harmless(readers[framework], run, expected)
    assert seen >= times, "no flip in the arrays was seen"


@pytest.mark.parametrize("framework", IN_BOTH)
@pytest.mark.parametrize(
    "change", [cut, lambda path: path.write_bytes(b""), Path.unlink], ids=["half", "empty", "gone"]
)
def test_a_file_that_is_cut_or_gone_is_seen_or_not_needed(framework, change, runs, readers, tmp_path):
    expected = readers[framework](runs[framework])
    seen = {
        path.name
        for path, run in damaged_copies(runs[framework], tmp_path / "copy", change)
        if refused_or_harmless(readers[framework], run, expected)
    }
    needed = {"weights.safetensors", "training.safetensors", "facts.json"} if framework == "torch" else {"metadata"}
    assert needed <= seen


@pytest.mark.parametrize("framework", IN_BOTH)
def test_weights_alone_are_checked_too(framework, runs, tmp_path):
    """What generation and conversion read."""
    expected = CHECKPOINT[framework].load_params(runs[framework])[1]
    seen, place = 0, random.Random(0)
    for _, run in damaged_copies(runs[framework], tmp_path / "copy", lambda path: flip(path, place)):
        complaint, found = said_by(lambda run=run: CHECKPOINT[framework].load_params(run)[1])
        seen += complaint is not None
        for name, array in (found or {}).items():
            assert array.tobytes() == expected[name].tobytes(), name
    assert seen > 0


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, crater: Path):
        self.crater = crater

    def __reduce__(self):
        return (Path.mkdir, (self.crater,))


@pytest.mark.parametrize("framework", IN_BOTH)
def test_a_pickle_where_a_checkpoint_should_be_is_never_executed(framework, runs, readers, tmp_path):
    crater = tmp_path / "crater"
    bomb = pickle.dumps(Bomb(crater))
    pickle.loads(bomb)
    crater.rmdir()  # it works

    def plant(path: Path) -> None:
        path.write_bytes(bomb)
        for name in ("model.pt", "state.pkl", "checkpoint"):
            torch.save({"state": Bomb(crater)}, path.parent / name)

    expected = readers[framework](runs[framework])
    for _, run in damaged_copies(runs[framework], tmp_path / "copy", plant):
        refused_or_harmless(readers[framework], run, expected)
        assert not crater.exists()
        said_by(lambda run=run: CHECKPOINT[framework].load_params(run))
        assert not crater.exists()


@pytest.mark.parametrize("every", [pytest.param(10, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)])
def test_a_real_process_says_one_line_of_a_damaged_array(every, runs, tmp_path):
    """What XLA, orbax and asyncio print of their own accord is seen here only."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    arrays, codes = [path for path in files(runs["jax"]) if path.parent.name == "d"], []
    for number, path in enumerate(arrays[::every]):
        run = tmp_path / str(number)
        shutil.copytree(runs["jax"], run)
        (run / path.relative_to(runs["jax"])).write_bytes(b"no array" * 40)
        argv = [sys.executable, "-m", "jax_impl.train", "linear", "--resume", "--out-dir", str(run)]
        process = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode in (0, 2), process.stderr
        assert process.stderr.count("\n") == (process.returncode == 2), process.stderr
        codes.append(process.returncode)
    assert 2 in codes, "no damage was seen"
