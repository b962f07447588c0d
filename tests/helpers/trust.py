"""What the tests of trust share: tiny runs of every model, and what must be the same in two runs."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from tests.helpers.frameworks import FRAMEWORKS as FRAMEWORKS
from tests.helpers.frameworks import in_each
from twinstep.errors import run_command
from twinstep.run_dir import CHECKPOINTS, METRICS, checkpoint_steps, read_metrics

TRAINER, CHECKPOINT = in_each("train"), in_each("checkpoint")

TEXT = ("--sequence-len", "16", "--batch-size", "4", "--eval-batches", "1")
TABLE = ("--batch-size", "32", "--eval-batches", "2")
MODELS = {
    "gpt": ("gpt", "--depth", "1", "--d-model", "16", "--head-dim", "8", "--sample-tokens", "4", *TEXT),
    "linear": ("linear", *TABLE),
    "embedding": ("embedding", "--d-model", "8", *TEXT),
    "mlp": ("mlp", "--hidden", "16", *TABLE),
}


def write_corpus(path: Path, words: int = 8000) -> Path:
    """A text of random words, the same each time."""
    choice = random.Random(0).choice
    vocabulary = ["tree", "state", "batch", "step", "loss", "the", "of", "and", "über", "\n"]
    path.write_text(" ".join(choice(vocabulary) for _ in range(words)), encoding="utf-8")
    return path


def arguments(model: str, corpus: Path, *flags: str) -> list[str]:
    """The command line of a tiny run."""
    data = ("--data", str(corpus)) if model in ("gpt", "embedding") else ()
    return [*MODELS[model], *data, *flags]


def train(framework: str, argv: list[str]) -> int:
    """A trainer's exit code, in this process."""
    return run_command(TRAINER[framework].main, argv)


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without what the clock decides. Every line of the file must be whole."""
    text = (run / METRICS).read_text(encoding="utf-8").splitlines()
    assert len(text) == len(read_metrics(run)), "a line of metrics.jsonl is torn"
    clocked = ("tokens_per_second", "examples_per_second", "mfu")
    return [{name: value for name, value in json.loads(line).items() if name not in clocked} for line in text]


def assert_same_run(framework: str, found: Path, expected: Path) -> None:
    """The same metrics, and the same newest checkpoint to the last bit: weights, optimizer, keys, facts."""
    assert lines(found) == lines(expected)
    assert checkpoint_steps(found)[-1] == checkpoint_steps(expected)[-1]
    assert_same_checkpoint(framework, found, expected, checkpoint_steps(expected)[-1])


def assert_same_checkpoint(framework: str, found: Path, expected: Path, step: int) -> None:
    module = CHECKPOINT[framework]
    # The facts hold a checksum of every array, or of both files.
    assert module.read_facts(found, step) == module.read_facts(expected, step)
    ours, theirs = module.load_params(found, step)[1], module.load_params(expected, step)[1]
    assert list(ours) == list(theirs)
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
        assert ours[name].tobytes() == theirs[name].tobytes(), name


def cut_back(run: Path, to: Path, step: int) -> Path:
    """A copy of a run as a kill after its checkpoint of `step` would have left it: later lines, a torn one, scraps."""
    shutil.copytree(run, to)
    for later in checkpoint_steps(to):
        if later > step:
            shutil.rmtree(to / CHECKPOINTS / str(later))
    (to / CHECKPOINTS / f"{step + 1}.orbax-checkpoint-tmp").mkdir()
    (to / CHECKPOINTS / f"{step + 1}.tmp").mkdir()
    with (to / METRICS).open("a", encoding="utf-8") as log:
        log.write('{"step": 3, "loss": 1.')
    (to / "loss.png").unlink(missing_ok=True)
    return to
