"""The parent's end of a worker: start it, let it work once, see how busy the machine was with other things."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from twinstep.errors import UserError

# Both frameworks on the same device. JAX takes three quarters of a GPU's memory at once unless told not to.
ENVIRONMENT = {
    "cpu": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    "cuda": {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
}


OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|OutOfMemoryError|out of memory", re.I)  # XLA's and torch's words


class NoMemoryError(UserError):
    """A worker's work does not fit beside the others'."""


class Sample(NamedTuple):
    """One measurement of a worker's work."""

    seconds: float
    cpu_seconds: float  # of all threads of the worker
    others: float | None  # cores that other processes kept busy meanwhile; None where the system doesn't say
    result: Any


class Worker:
    """A process that prepares one side's work from now on. Use as a context manager; `wait` before the first work."""

    def __init__(
        self,
        module: str,
        side: str,
        spec: dict[str, Any],
        platform: str = "cpu",
        env: Mapping[str, str] | None = None,
    ):
        self.name = f"{module} of {side}"
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", module, side, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **ENVIRONMENT[platform], **(env or {})},
            cwd=Path(__file__).parents[1],
        )

    def wait(self) -> float:
        """Seconds from the process's start until it was ready to work. Raises UserError if it died."""
        self._answer()
        return time.perf_counter() - self.started

    def work(self) -> Sample:
        """Raises UserError with the worker's last line if it has died."""
        assert self.process.stdin is not None
        before = busy_seconds()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        others = None
        if before is not None and (after := busy_seconds()) is not None:
            others = max(0.0, after - before - answer["cpu_seconds"]) / answer["seconds"]
        return Sample(answer["seconds"], answer["cpu_seconds"], others, answer["result"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip()
        last = (said.splitlines() or ["no message"])[-1]
        if OUT_OF_MEMORY.search(said):
            raise NoMemoryError(f"{self.name} ran out of the device's memory: {last}")
        raise UserError(f"{self.name} ended: {last}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


@contextmanager
def workers(
    module: str, specs: dict[str, dict[str, Any]], platform: str = "cpu", *, together: bool = True
) -> Iterator[dict[str, Worker]]:
    """A worker for each side, ready to work.

    They get ready together unless that takes time which is measured, or on a GPU: XLA times kernels while it compiles,
    and a step of one side at a time is all that the memory has to hold.
    """
    together = together and platform == "cpu"
    with ExitStack() as stack:
        started = {}
        for side, spec in specs.items():
            started[side] = stack.enter_context(Worker(module, side, spec, platform))
            if not together:
                started[side].wait()
        if together:
            for worker in started.values():
                worker.wait()
        yield started


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started, from Linux's /proc/stat."""
    try:
        user, nice, system, _, _, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
