"""Packages that only an extra brings: where one is missing, one line says how to install it."""

import importlib.util
import sys
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from twinstep.errors import UserError

# Package -> the extra of pyproject.toml that brings it.
EXTRAS = {
    "torch": "torch",
    "tensorboardX": "tensorboard",
    "wandb": "wandb",
    "libtpu": "tpu-aot",
    "jax_cuda13_plugin": "gpu-aot",
    "transformers": "hf",
}


class MissingPackageError(UserError, ImportError):
    """A package that is not installed; for a program that imports us, an ImportError like any other."""


def needs(package: str, who: str) -> None:
    """Raises MissingPackageError where `package`, which `who` needs, is not installed.

    For the `__init__` of a package that cannot work without it, too: under `python -m` the line is printed and the
    process ends, since no command runs yet that could catch the error.
    """
    try:
        found = importlib.util.find_spec(package) is not None
    except ImportError:
        found = False
    if found:
        return
    error = MissingPackageError(f"No module named {package!r}, which {who} needs: {how_to_install(EXTRAS[package])}")
    if sys.argv[:1] == ["-m"]:  # so it stands until Python has found the module that it is to run
        refuse(error)
    raise error


def how_to_install(extra: str) -> str:
    """The command, with the folder in which it works. PyPI has no package of ours."""
    root = Path(__file__).resolve().parents[1]
    place = root if (root / "pyproject.toml").exists() else "your checkout of twinstep"
    return f"run pip install -e '.[{extra}]' in {place}"


def refuse(error: UserError) -> NoReturn:
    """What `twinstep.errors.run_command` makes of an error, where it is not there: one line, and the exit code."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)


def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of scripts that import frameworks before us: a missing package is one line, exit code 2."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        refuse(MissingPackageError(f"No module named {error.name!r}: {how_to_install(EXTRAS[error.name])}"))
    sys.__excepthook__(kind, error, trace)
