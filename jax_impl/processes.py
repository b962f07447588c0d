"""A run of several processes, one per host: how they find each other, agree, and end together.

With one process everything here returns at once and touches no device.
"""

import functools
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from twinstep.config import Config
from twinstep.errors import RunError, UserError, run_command

Result = TypeVar("Result")

HEARTBEAT_SECONDS = 30  # a process without a heartbeat for so long counts as dead
TEXT_BYTES = 4096  # longest text that processes tell each other

# What XLA and orbax say when another process has gone: gloo on CPUs, NCCL on GPUs, the coordination service on all.
LOST = re.compile(r"gloo|nccl|coordination|heartbeat|barrier|connection|peer|UNAVAILABLE|DEADLINE_EXCEEDED", re.I)


def initialize(config: Config) -> None:
    """Join the other processes of this run, if there are any; call before anything touches a device.

    They are given by --coordinator, --num-processes and --process-id, or found by JAX on a TPU pod and under SLURM.
    Raises UserError for flags that do not go together, RunError if the others do not come.
    """
    d = config.devices
    given = {
        "--coordinator": d.coordinator,
        "--num-processes": d.num_processes,
        "--process-id": d.process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not launched_by_cluster():
        return
    if missing and not launched_by_cluster():
        raise UserError(f"a run of several processes needs {' and '.join(missing)} too; pass all three, or none")
    if d.coordinator is not None and not re.fullmatch(r".+:\d+", d.coordinator):
        raise UserError(f"--coordinator is {d.coordinator!r}; pass HOST:PORT of process 0, such as 10.0.0.1:1234")
    try:
        jax.distributed.initialize(
            d.coordinator,
            d.num_processes,
            d.process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:
        line = str(error).strip().splitlines()[0][:200]
        raise RunError(
            f"the processes of this run did not find each other ({line}); check that all were started, that "
            "--coordinator names the host and a free port of process 0, and that the others can reach it"
        ) from error


def launched_by_cluster() -> bool:
    """True where JAX can find the other processes without flags: started by SLURM's srun, or on a TPU VM."""
    if "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return True
    has_tpu = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(has_tpu) and importlib.util.find_spec("libtpu") is not None


def several() -> bool:
    """True in a run of more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def shard() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (jax.process_index(), jax.process_count()) if several() else (0, 1)


def text_of_first(text: str) -> str:
    """The first process's text (at most TEXT_BYTES), on every process."""
    if not several():
        return text
    padded = np.zeros(TEXT_BYTES, dtype=np.uint8)
    encoded = np.frombuffer(text.encode()[:TEXT_BYTES], np.uint8)
    padded[: len(encoded)] = encoded
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).rstrip(b"\0").decode()


def first_does(action: Callable[[], Result]) -> Result | None:
    """The first process does it while the others wait and get None; its UserError is raised by all."""
    complaint, result = "", None
    if shard()[0] == 0:
        try:
            result = action()
        except UserError as error:
            if not several():
                raise
            complaint = f"{error.exit_code}{error}"
    complaint = text_of_first(complaint)
    if complaint:
        raise (RunError if complaint[0] == "1" else UserError)(complaint[1:])
    return result


def agreed(own: int | None, gathered: jax.Array | None) -> int | None:
    """The signal on which all processes act at the same step, or None.

    One process acts on its own. Several act on the largest that any of them passed to the step before, which took
    the maximum (`with_signal` in parallel.py). A collective outside the step could start before the step's own on a
    CPU, in another order on each process, and deadlock.
    """
    if not several():
        return own
    return None if gathered is None else int(gathered) or None


def has_lost(error: BaseException) -> bool:
    """True if the error says that another process of this run has gone; a UserError is judged by its cause."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    return several() and cause is not None and bool(LOST.search(f"{type(cause).__name__} {cause}"))


def leave_together(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """A decorator of an entry point: in a run of several processes a failure ends this one at once, with one line.

    Python's usual exit would wait for the others, who wait for this one. XLA reports a lost process in many lines,
    here replaced by one. Where XLA does not notice (a hang on an accelerator), its coordination service ends the
    process when heartbeats are missing.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str]) -> int:
        try:
            return main(argv)
        except BaseException as error:
            if not jax.distributed.is_initialized():
                raise
            if has_lost(error):
                rank, processes = shard()
                error = RunError(
                    f"process {rank} of {processes} has lost another one and ends; see that one's output, then start "
                    "all again with --resume, on any number of processes"
                )
            elif isinstance(error, Exception) and not isinstance(error, UserError):
                sys.excepthook(type(error), error, error.__traceback__)
                _leave(1)
            _leave(run_command(_raising(error)))
            raise

    return wrapped


def _raising(error: BaseException) -> Callable[[list[str]], int]:
    def main(argv: list[str]) -> int:
        raise error

    return main


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
