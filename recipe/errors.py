"""Errors meant for people: one clear line, exit code 2, no traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and how to mend it, in one line."""

    exit_code = 2


class RunError(UserError):
    """A run that was well asked for and cannot go on: a loss that is not finite, a full disk."""

    exit_code = 1


def run_command(main: Callable[[list[str]], int], argv: list[str] | None = None) -> int:
    """Run `main(argv)` and turn its failures into the exit codes that every public command keeps.

    Returns `main`'s own code, 2 after a UserError and 1 after a RunError (the line goes to standard error), 130 after
    Ctrl-C.
    Any other exception is a bug and keeps its traceback.
    """
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away: `... | head`
        sys.stderr.close()
        return 0
