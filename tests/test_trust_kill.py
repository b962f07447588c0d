"""kill -9 at random moments, saves included: a resume ends with the bits of the undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.trust import FRAMEWORKS, arguments, assert_same_run, write_corpus
from twinstep.run_dir import CHECKPOINTS, checkpoint_steps, read_metrics

# A checkpoint at every step, so that most moments fall into a save or the removal of an old checkpoint.
STEPS = 30
FLAGS = ("--steps", str(STEPS), "--save-every", "1", "--keep-last", "2", "--eval-every", "7", "--log-every", "1")


class Trial:
    """Runs of one trainer as processes of their own."""

    def __init__(self, framework: str, place: Path):
        self.framework, self.place = framework, place
        self.module = "jax_impl.train" if framework == "jax" else "torch_ref.train"
        self.argv = arguments("gpt", write_corpus(place / "words.txt"), *FLAGS)
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),  # it may be killed while it is written, too
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "XDG_CACHE_HOME": str(place / "cache"),
        }

    def start(self, run: Path, *argv: str) -> subprocess.Popen:
        command = [sys.executable, "-m", self.module, *argv, "--out-dir", str(run)]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def finish(self, run: Path, *argv: str) -> float:
        """Seconds from a run's first line of metrics to its last checkpoint."""
        process = self.start(run, *argv)
        begun = ended = 0.0
        while process.poll() is None:
            if not begun and (run / "metrics.jsonl").exists():
                begun = time.monotonic()
            if not ended and STEPS in checkpoint_steps(run):
                ended = time.monotonic()
            time.sleep(0.01)
        _, err = process.communicate()
        assert process.returncode == 0, err
        return ended - begun

    def kill(self, run: Path, step: int, after: float) -> None:
        """Start a run and kill it `after` seconds past the first sight of a line of `step`; for -1 past its start."""
        process = self.start(run, *self.argv)
        log = run / "metrics.jsonl"
        while step >= 0 and process.poll() is None:
            if log.exists() and any(line["step"] >= step for line in read_metrics(run)):
                break
            time.sleep(0.001)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("part", "kills"),
    [pytest.param(0, 3, marks=pytest.mark.slow), *(pytest.param(n, 10, marks=pytest.mark.long) for n in (1, 2, 3, 4))],
    ids=["3", "40-1", "40-2", "40-3", "40-4"],
)
def test_a_killed_run_resumes_to_the_same_bits(framework, part, kills, tmp_path):
    trial, moments = Trial(framework, tmp_path), random.Random(part)
    trial.finish(tmp_path / "whole", *trial.argv)
    a_step = trial.finish(tmp_path / "again", *trial.argv) / STEPS  # compiled already, as those that are killed
    assert_same_run(framework, tmp_path / "again", tmp_path / "whole")
    newest = []
    for number in range(kills):
        run = tmp_path / f"killed-{number}"
        if number % 10 == 9:
            trial.kill(run, -1, moments.uniform(0, 5))  # imports, data, the first files
        else:
            trial.kill(run, moments.randrange(STEPS - 1), moments.uniform(0, a_step))
        saved = checkpoint_steps(run)
        unfinished = [entry.name for entry in (run / CHECKPOINTS).glob("*") if not entry.name.isdecimal()]
        newest.append((saved[-1] if saved else None, len(unfinished)))
        began = (run / "config.json").exists()
        trial.finish(run, *(("gpt", "--resume") if began else trial.argv))
        assert_same_run(framework, run, tmp_path / "whole")
        shutil.rmtree(run)
    print(f"{kills} of {kills}; newest checkpoint and unfinished ones at the kill: {newest}")
