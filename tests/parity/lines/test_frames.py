"""Whose code a line is."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import parity.faults.layers
import parity.pair.compare
import torch_ref.models.mlp
from parity.lines import frames
from parity.lines.frames import owner_of, running_lines


@pytest.mark.parametrize(
    ("place", "owner"),
    [
        (parity.faults.layers, "user"),
        (parity.pair.compare, "parity"),
        (frames, "framework"),
        (torch_ref.models.mlp, "user"),
        ("/x/site-packages/transformers/models/bert/modeling_bert.py", "user"),
        (sys.modules[__name__], "user"),
        (torch.__file__.replace("torch/__init__", "torchvision/models/resnet"), "user"),
        (np, "framework"),
        ("/x/site-packages/einops/einops.py", "framework"),
        (torch.nn.functional, "framework"),
        (nn.modules.normalization, "layer"),
        (nn.modules.module, "framework"),
        (sys.modules["torch.optim.adamw"], "optimizer"),
        (sys.modules["functools"], "framework"),
    ],
)
def test_whose_code_a_file_is(place, owner):
    assert owner_of(place if isinstance(place, str) else place.__file__) == owner


def test_the_innermost_line_of_the_users_is_taken_and_parity_hides_whoever_calls_it():
    line, library = running_lines()
    assert (line.file, line.function, library) == (__file__, sys._getframe().f_code.co_name, None)
    inside = compile("lines = running_lines()", str(Path(parity.pair.compare.__file__)), "exec")
    names = {"running_lines": running_lines}
    exec(inside, names)
    assert names["lines"] == (None, None)
