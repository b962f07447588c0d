"""Which line of the user's is running: frames of frameworks, of Python's library and of parity are left out."""

import sys
from functools import cache
from pathlib import Path

import torch
from torch.autograd import graph

from parity.lines.line import Line, one_line
from parity.lines.whose import PARITY, whose

# They stand inside every operation.
HERE = (f"{PARITY}lines/", f"{PARITY}widen_torch.py", f"{PARITY}pair/torch_masks.py")
TORCH = f"{Path(torch.__file__).parent}/"
LAYERS = (f"{TORCH}nn/modules/", f"{TORCH}nn/utils/")
OPTIMIZERS = f"{TORCH}optim/"
CALLS = ("module.py", "container.py")  # of torch's layers: no arithmetic
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
    if file.startswith(HERE):
        return "framework"
    if file.startswith(OPTIMIZERS):
        return "optimizer"
    if file.startswith(LAYERS) or function == "multi_head_attention_forward":
        return "framework" if file.endswith(CALLS) else "layer"
    if whose(file) == "user":
        return "user"
    return "parity" if file.startswith(PARITY) else "framework"
