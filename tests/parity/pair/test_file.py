"""`python -m parity compare FILE.py`: exit codes, reports, and one line for a file that is none of a pair."""

import json

import pytest

from parity.cli import main
from twinstep.errors import UserError

PAIR = """
import numpy as np
import torch


def torch_side():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3), [np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)]


def jax_side(state_dict):
    params = {"kernel": state_dict["weight"].numpy().T, "bias": state_dict["bias"].numpy()}
    return lambda p, x: SCALE * (x @ p["kernel"] + p["bias"]), params


SCALE = 1.0
"""


def written(tmp_path, text):
    path = tmp_path / "my_port.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(("scale", "code", "verdict"), [("1.0", 0, "agrees"), ("1.001", 1, "diverges")])
def test_the_exit_code_is_the_verdict_and_the_reports_are_those_of_check(tmp_path, capsys, scale, code, verdict):
    path, out = written(tmp_path, PAIR.replace("SCALE = 1.0", f"SCALE = {scale}")), tmp_path / "out"
    assert main(["compare", path, "--out-dir", str(out)]) == code
    found = json.loads((out / "parity.json").read_text())
    assert (found["verdict"], found["command"]) == (verdict, f"python -m parity compare {path}")
    assert (out / "report.html").is_file()
    assert "activations" in capsys.readouterr().out


def test_options_are_passed_on(tmp_path):
    path = written(tmp_path, PAIR + '\nOPTIONS = {"dtype": "float32"}\n')
    main(["compare", path, "--out-dir", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def torch_side(): pass", "torch_side must return (module, inputs), and returns NoneType"),
        ("x = 1", "defines no function torch_side"),
        ("raise ValueError('no')", "cannot be run: ValueError: no"),
        (PAIR + "\nOPTIONS = {'rule': 1}\n", "OPTIONS names 'rule', which parity.compare does not take"),
        (PAIR.replace('state_dict["bias"]', 'state_dict["b"]'), "jax_side raises KeyError: 'b'"),
        (PAIR.replace("def jax_side", "def port_side"), "defines no function jax_side"),
    ],
)
def test_a_file_that_is_none_of_a_pair_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        main(["compare", written(tmp_path, text), "--out-dir", str(tmp_path / "out")])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no file; pass a Python file"):
        main(["compare", str(tmp_path / "none.py")])
