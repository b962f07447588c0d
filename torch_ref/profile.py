"""A trace of a few steps, `--profile FIRST:LAST`: what ran when, on the host and on the devices."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.profiler import record_function

from twinstep.run_log import RunLog, steps_to_profile


def profiled(log: RunLog, start: int, batches: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    """(step, batch) from step `start + 1` on; the steps of `--profile` are traced, or those of them that are run."""
    steps = steps_to_profile(log, start)
    with ExitStack() as open_trace:
        for step, batch in enumerate(batches, start + 1):
            if step == steps.start:
                open_trace.enter_context(trace(log, step))
            with record_function(f"step {step}"):
                yield step, batch
            if step + 1 == steps.stop:
                open_trace.close()


@contextmanager
def trace(log: RunLog, first: int) -> Iterator[None]:
    """Trace what is computed meanwhile, and write it to RUN/profile. first: the step with which it begins."""
    file = log.run / "profile" / f"from-step-{first}.trace.json.gz"
    wait()  # nothing of earlier steps is under way any more
    profiler = torch.profiler.profile()  # of the CPU, and of a GPU where there is one
    profiler.start()
    try:
        yield
    finally:
        with log.writing_profile(f"open {file} at https://ui.perfetto.dev, or in chrome://tracing"):
            wait()
            profiler.stop()
            file.parent.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(file))


def wait() -> None:
    """Until the GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
