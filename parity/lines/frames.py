"""Which line of the user's is running: frames of frameworks, of Python's library and of parity are left out."""

import sys
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch.autograd import graph

from parity.lines.line import Line, one_line

PARITY = f"{Path(__file__).parents[1]}/"
FAULTS = f"{PARITY}faults/"  # code planted for the user's
HERE = (f"{PARITY}lines/", f"{PARITY}widen_torch.py")  # they stand inside every operation
TORCH = f"{Path(torch.__file__).parent}/"
LAYERS = (f"{TORCH}nn/modules/", f"{TORCH}nn/utils/")
OPTIMIZERS = f"{TORCH}optim/"
CALLS = ("module.py", "container.py")  # of torch's layers: no arithmetic
PYTHON = (f"{sysconfig.get_path('stdlib')}/", f"{sysconfig.get_path('platstdlib')}/")
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
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        owner = owner_of(file, function)
        if owner == "user" or (recorded and owner == "optimizer"):
            return one_line(file, frame.f_lineno, function), library
        if owner == "parity":
            break
        if owner == "layer" and library is None:
            library = one_line(file, frame.f_lineno, function)
        frame = frame.f_back  # type: ignore[assignment]
    return None, library


@cache
def owner_of(file: str, function: str = "") -> str:
    """Whose code it is: "user", "parity", or a "framework", of which an "optimizer" and a "layer" are told apart."""
    if file.startswith(PARITY):
        if file.startswith(FAULTS):
            return "user"
        return "framework" if file.startswith(HERE) else "parity"
    if file.startswith(OPTIMIZERS):
        return "optimizer"
    if file.startswith(LAYERS) or function == "multi_head_attention_forward":
        return "framework" if file.endswith(CALLS) else "layer"
    package = file.split("site-packages/")[-1].split("/")[0] if "site-packages/" in file else ""
    python = file.startswith(PYTHON) and "-packages/" not in file
    return "framework" if python or package in FRAMEWORKS or file.startswith(("<", TORCH)) else "user"
