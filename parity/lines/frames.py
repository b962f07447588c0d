"""Which line of the user's is running: frames of frameworks, of Python's library and of parity are left out."""

import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import CodeType

import torch
from torch.autograd import graph

from parity.lines.line import Line, one_line

PARITY = str(Path(__file__).parents[1])
FAULTS = str(Path(PARITY, "faults"))  # code planted for the user's
HERE = (str(Path(__file__).parent), str(Path(PARITY, "widen_torch.py")))  # they stand inside every operation
TORCH = str(Path(torch.__file__).parent)
LAYERS = (str(Path(TORCH, "nn", "modules")), str(Path(TORCH, "nn", "utils")))
OPTIMIZERS = str(Path(TORCH, "optim"))
CALLS = ("module.py", "container.py")  # of torch's layers: no arithmetic
PYTHON = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
FRAMEWORKS = ("numpy", "torch", "torchgen", "functorch", "einops", "opt_einsum", "jaxtyping", "beartype")
ENGINE = graph._engine_run_backward.__code__  # who called it is not who computes a derivative


def running_lines(recorded: bool = False) -> tuple[Line | None, Line | None]:
    """The innermost line of the user's own code, and a deeper line of a layer of torch's where there is one.

    No line of the user's where the code is parity's. Where operations are `recorded`, a step of torch.optim counts as
    the user's, and who calls a backward pass does not.
    """
    library = None
    frame = sys._getframe(1)
    while frame is not None and not (recorded and frame.f_code is ENGINE):
        owner = owner_of(frame.f_code)
        if owner == "user" or (recorded and owner == "optimizer"):
            return one_line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name), library
        if owner == "parity":
            break
        if owner == "layer" and library is None:
            library = one_line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return None, library


@cache
def owner_of(code: CodeType) -> str:
    """Whose code it is: "user", "parity", or a "framework", of which an "optimizer" and a "layer" are told apart."""
    file = code.co_filename
    if file.startswith(PARITY):
        if file.startswith(FAULTS):
            return "user"
        return "framework" if file.startswith(HERE) else "parity"
    if file.startswith(OPTIMIZERS):
        return "optimizer"
    if file.startswith(LAYERS) or code.co_name == "multi_head_attention_forward":
        return "framework" if file.endswith(CALLS) else "layer"
    package = file.split("site-packages/")[-1].split("/")[0] if "site-packages/" in file else ""
    python = file.startswith(PYTHON) and "-packages/" not in file
    return "framework" if python or package in FRAMEWORKS or file.startswith(("<", TORCH)) else "user"
