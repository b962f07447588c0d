"""A pair in a file of the user's, for `python -m parity compare my_port.py` and `python -m parity record my_port.py`.

The file has `torch_side() -> (module, inputs)` and `jax_side(state_dict) -> (function, params)`, and perhaps
`OPTIONS`, a dict of `parity.compare`'s other arguments.
"""

import inspect
import runpy
from pathlib import Path
from typing import Any

from parity.broken import described
from parity.result import Result
from twinstep.errors import UserError

OWN = ("module", "function", "params", "inputs")  # what the two functions give


def compare_file(path: Path, dtype: str | None) -> Result:
    """The comparison that the file describes. Raises UserError for a file that cannot be run, or is none of a pair."""
    from parity.pair.compare import compare  # and with it torch, which the JAX side of a recording does without

    found = run_file(path)
    options = known_options(path, found)
    if dtype is not None:
        options = {**options, "dtype": dtype}
    module, inputs = torch_side(path, found)
    function, params = jax_side(path, found, dict(module.state_dict()))
    convert = lambda state: jax_side(path, found, state)[1]
    return compare(module, function, params, inputs, **{"convert": convert, **options})


def known_options(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The file's OPTIONS. Raises UserError for one that `parity.compare` does not take."""
    from parity.pair.compare import compare

    options = found.get("OPTIONS", {})
    known = [name for name in inspect.signature(compare).parameters if name not in OWN]
    for name in options:
        if name not in known:
            raise UserError(f"{path}: OPTIONS names {name!r}, which parity.compare does not take: {', '.join(known)}")
    return options


def run_file(path: Path) -> dict[str, Any]:
    """What the file defines."""
    if not path.is_file():
        raise UserError(f"{path} is no file; pass a Python file with torch_side and jax_side")
    try:
        return runpy.run_path(str(path), run_name="parity_pair")
    except ModuleNotFoundError as error:
        hint = "; import torch within torch_side: the JAX side does without it" if error.name == "torch" else ""
        raise UserError(f"{path} cannot be run: {described(error)}{hint}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run: {described(error)}") from error


def torch_side(path: Path, found: dict[str, Any]) -> tuple[Any, Any]:
    """The module and its inputs."""
    return pair_of(path, "torch_side", called(path, found, "torch_side"), "(module, inputs)")


def jax_side(path: Path, found: dict[str, Any], state_dict: dict[str, Any]) -> tuple[Any, Any]:
    """The port and its parameters."""
    return pair_of(path, "jax_side", called(path, found, "jax_side", state_dict), "(function, params)")


def called(path: Path, found: dict[str, Any], name: str, *args: Any) -> Any:
    """What one of the file's functions returns."""
    if not callable(found.get(name)):
        raise UserError(f"{path} defines no function {name}; see `python -m parity compare --help`")
    try:
        return found[name](*args)
    except Exception as error:
        raise UserError(f"{path}: {name} raises {described(error)}") from error


def pair_of(path: Path, name: str, returned: Any, what: str) -> tuple[Any, Any]:
    """The two things that it must return."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise UserError(f"{path}: {name} must return {what}, and returns {type(returned).__name__}")
    return returned[0], returned[1]
