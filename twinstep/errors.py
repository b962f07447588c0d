"""Errors meant for people: one clear line, exit code 2, no traceback."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and how to mend it, in one line."""

    exit_code = 2


class RunError(UserError):
    """A run that was well asked for and cannot go on: a loss that is not finite, a full disk."""

    exit_code = 1


def not_finite(
    step: int, what: str, finite: Mapping[str, bool], saved: Sequence[int], run: Path | None = None
) -> RunError:
    """The end of a run whose numbers overflowed.

    finite: for each tensor by name, whether all its numbers are finite. saved: the steps of the finished checkpoints.
    run: the run whose batch to look at; None where it was not in training.
    """
    tensor = next((name for name, is_finite in finite.items() if not is_finite), "no single tensor")
    kept = f"the checkpoint of step {saved[-1]} is intact" if saved else "no checkpoint was saved before"
    command = f"python -m twinstep.data --run {shlex.quote(str(run))} --batch {step - 1}"
    look = f"look at its batch, number {step - 1} ({command}), or " if run is not None else ""
    return RunError(
        f"step {step}: {what}; not finite: {tensor}; {kept}; {look}start a new run with lower learning rates or a "
        "longer warm-up"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters; the error's type if it has no message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def run_command(main: Callable[[list[str]], int], argv: list[str] | None = None) -> int:
    """Run `main(argv)` and turn its failures into the exit codes that every public command keeps.

    Returns `main`'s own code, 2 after a UserError, 1 after a RunError or when memory runs out (one line goes to
    standard error), 130 after Ctrl-C. Any other exception is a bug and keeps its traceback.
    """
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except MemoryError as error:
        print(f"error: not enough memory: {error}; choose a smaller model or batch", file=sys.stderr)
        return RunError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away: `... | head`
        sys.stderr.close()
        return 0
