"""A trace of a few steps, `--profile FIRST:LAST`: what ran when, on the host and on the devices."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

from twinstep.run_log import RunLog, steps_to_profile


def profiled(log: RunLog, start: int, batches: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    """(step, batch) from step `start + 1` on; the steps of `--profile` are traced, or those of them that are run."""
    steps = steps_to_profile(log, start)
    with ExitStack() as open_trace:
        for step, batch in enumerate(batches, start + 1):
            if step == steps.start:
                open_trace.enter_context(trace(log, step))
            with jax.profiler.StepTraceAnnotation("step", step_num=step):
                yield step, batch
            if step + 1 == steps.stop:
                open_trace.close()


@contextmanager
def trace(log: RunLog, first: int) -> Iterator[None]:
    """Trace what is computed meanwhile, and write it to RUN/profile. first: the step with which it begins."""
    folder = log.run / "profile"
    options = jax.profiler.ProfileOptions()
    options.session_id = f"from-step-{first}"
    options.python_tracer_level = 0  # every Python call too would bury the rest
    wait()  # nothing of earlier steps is under way any more
    jax.profiler.start_trace(folder, profiler_options=options)
    try:
        yield
    finally:
        file = folder / "plugins" / "profile" / options.session_id / "*.trace.json.gz"
        with log.writing_profile(
            f"open {file} at https://ui.perfetto.dev, or run tensorboard --logdir {folder} (pip install tensorboard "
            "xprof)"
        ):
            wait()
            jax.profiler.stop_trace()


def wait() -> None:
    """Until the devices have done all that they were given."""
    jax.block_until_ready(jax.live_arrays())
