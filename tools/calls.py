"""Commands run one after another within one budget of time, with what they printed and what the GPU did meanwhile."""

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
TAIL = 3000  # characters of what a command printed that go into the JSON; the log has all
SMI = ("nvidia-smi", "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500")


class StepError(Exception):
    """A step that cannot go on: a command failed, ran out of time, or wrote nothing that can be read."""


class Called(NamedTuple):
    """One command that ended."""

    exit_code: int | str
    seconds: float
    stdout: bytes
    entry: dict[str, Any]  # what the JSON says of it


@dataclass
class Calls:
    """The commands of one step after another. deadline: on the clock of `time.monotonic`."""

    platform: str
    folder: Path
    log: Path
    deadline: float
    environment: dict[str, str]
    upstream: str | None = None  # a checkout of nanochat
    entries: list[dict[str, Any]] = field(default_factory=list)  # of the step under way

    def minutes_left(self) -> float:
        """Until the deadline."""
        return (self.deadline - time.monotonic()) / 60

    def run(self, *words: object, limit: float, until: Callable[[], bool] = lambda: False, ok: tuple[int, ...] = (0,),
            **environment: str) -> Called:  # fmt: skip
        """`python WORDS...`, killed after `limit` seconds, at the deadline, or as soon as `until()` holds.

        Raises StepError for an exit code that is not in `ok`. One that was killed because of `until` is "killed".
        """
        limit = min(limit, 60 * self.minutes_left())
        if limit < 5:
            raise StepError("no time left")
        command = [sys.executable, *map(str, words)]
        env = {**os.environ, **self.environment, **environment}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as smi:
            watcher = subprocess.Popen(SMI, stdout=smi, stderr=smi) if self.platform == "cuda" else None
            start, ended = time.monotonic(), ""
            # A session of its own: killing its group leaves no worker behind.
            process = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=ROOT, start_new_session=True)
            while process.poll() is None and not ended:
                time.sleep(0.005)
                seconds = time.monotonic() - start
                ended = "killed" if until() else "out of time" if seconds > limit else ""
            if ended:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            seconds = time.monotonic() - start
            if watcher is not None:
                watcher.terminate()
                watcher.wait()
            stdout, stderr, samples = (read_all(f) for f in (out, err, smi))
        exit_code = ended or process.returncode
        printed = (stderr + b"\n" + stdout).decode(errors="replace").strip()
        shown = " ".join(["python", *map(str, words)])
        entry = {"command": shown, "seconds": round(seconds, 2), "exit_code": exit_code, **gpu_use(samples.decode())}
        entry["tail"] = printed[-TAIL:]
        self.entries.append(entry)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {shown}\n{printed}\n[{exit_code} after {seconds:.1f} s]\n")
        if exit_code != "killed" and exit_code not in ok:
            last = (printed.splitlines() or ["it printed nothing"])[-1]
            raise StepError(f"{shown[:60]} ... ended with {exit_code}: {last[:200]}")
        return Called(exit_code, seconds, stdout, entry)


def read_all(file: Any) -> bytes:
    """All bytes of an open file."""
    file.seek(0)
    return file.read()


def gpu_use(samples: str) -> dict[str, float]:
    """Peak memory in MiB and the median and highest utilisation in percent, from nvidia-smi's lines."""
    pairs = [(int(m), int(u)) for m, u in re.findall(r"^(\d+), (\d+)$", samples, re.MULTILINE)]
    if not pairs:
        return {}
    memory, busy = zip(*pairs, strict=True)
    return {
        "peak_memory_mib": max(memory),
        "median_utilisation": statistics.median(busy),
        "highest_utilisation": max(busy),
    }
