"""Runs of several local processes; `python -m tests.helpers.multihost RECORD DIE_AT DIE_IN MODEL FLAGS...` is one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.trajectories import environment

NEVER = 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


class Processes:
    """The processes of one run, started at once.

    `dying` kills itself as by `kill -9` when it logs step `die_at` ("log"), or has begun to save it ("save").
    """

    def __init__(
        self,
        count: int,
        folder: Path,
        flags: Sequence[str],
        dying: int = 0,
        die_at: int = NEVER,
        die_in: str = "log",
        slurm: bool = False,
    ):
        self.folder = folder
        port = free_port()
        self.running = []
        for number in range(count):
            command = [sys.executable, "-m", "tests.helpers.multihost", str(self.record(number))]
            command += [str(die_at if number == dying else NEVER), die_in, *flags]
            extra = {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "0"}  # they would read what others are writing
            if slurm:
                extra |= {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
                extra |= {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
            elif count > 1:
                command += [f"--coordinator=localhost:{port}", f"--num-processes={count}", f"--process-id={number}"]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, env=environment(**extra), stdout=pipe, stderr=pipe, text=True)
            self.running.append(process)

    def record(self, number: int) -> Path:
        return self.folder / f"process-{number}.json"

    def finish(self, timeout: float = 300) -> list[tuple[int, str, str]]:
        """Exit code, standard output and standard error of each; none may take longer than `timeout` seconds."""
        found = []
        try:
            for process in self.running:
                out, err = process.communicate(timeout=timeout)
                found.append((process.returncode, out, err))
        finally:
            for process in self.running:
                process.kill()
        return found

    def shards_read(self, number: int) -> list[Any]:
        return json.loads(self.record(number).read_text())


def main(record: str, die_at: int, die_in: str, flags: list[str]) -> int:
    """Train, note which shards are read, and die when told to, once a checkpoint is there."""
    from jax_impl import checkpoint, input, train
    from twinstep.errors import run_command
    from twinstep.run_dir import checkpoint_steps

    read: set[tuple[int, int]] = set()
    get_batch, record_step, save = input.NumberedBatches.__getitem__, train.record, checkpoint.save

    def noting_get_batch(self: input.NumberedBatches, number: int) -> dict:
        read.add((self.shard, self.shards))
        return get_batch(self, number)

    def dying_record_step(log: Any, config: Any, params: Any, pending: Any) -> None:
        record_step(log, config, params, pending)
        if die_in == "log" and pending is not None and pending[0] == die_at:
            while not checkpoint_steps(log.run):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_save(manager: Any, state: Any, facts: Any) -> None:
        save(manager, state, facts)
        if die_in == "save" and int(state.step) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    input.NumberedBatches.__getitem__ = noting_get_batch  # type: ignore[method-assign]
    train.record = dying_record_step
    checkpoint.save = dying_save
    code = run_command(train.main, flags)
    Path(record).write_text(json.dumps(sorted(read)))
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
