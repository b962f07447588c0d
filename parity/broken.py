"""What a port raised, in one line: the type, the message, and the innermost line of the port's own code."""

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinstep.errors import UserError

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
ROOT = Path(__file__).parents[1]
OURS = tuple(str(ROOT / name) for name in ("jax_impl", "torch_ref", "parity", "twinstep"))  # installed, or not
REFERENCE = str(ROOT / "torch_ref")


class PortError(Exception):
    """A port that raised. The message is what `described` says of it."""


@contextmanager
def of_port() -> Iterator[None]:
    """What is raised within, or by a function that this decorates, is the port's: as PortError.

    Raises UserError, which is of bad input, MemoryError, and what torch_ref raises as they are.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        line = innermost(error)
        if line is not None and line.filename.startswith(REFERENCE):
            raise
        raise PortError(described(error)) from error


def described(error: BaseException) -> str:
    """ "TypeError: ... (jax_impl/losses.py:37, in loss_sums)". A UserError says where by itself."""
    if isinstance(error, UserError):
        return str(error)
    line = innermost(error)
    first_line, message = str(error).strip().partition("\n")[0][:300], type(error).__name__
    message += f": {first_line}" if first_line else ""
    return message if line is None else f"{message} ({short(line.filename)}:{line.lineno}, in {line.name})"


def innermost(error: BaseException) -> traceback.FrameSummary | None:
    """The last line of the port; of parity where it is in none of the port's, as for a None that a port returned."""
    lines = [line for line in traceback.extract_tb(error.__traceback__) if not is_library(line.filename)]
    ports = [line for line in lines if Path(line.filename).parent != Path(__file__).parent]
    return next(reversed(ports or lines), None)


def is_library(filename: str) -> bool:
    """Of Python, an installed package, or code without a file."""
    return filename.startswith(("<", *LIBRARIES)) and not filename.startswith(OURS)


def short(filename: str) -> str:
    """Relative to this project, or as it is."""
    return str(Path(filename).relative_to(ROOT)) if filename.startswith(OURS) else filename
