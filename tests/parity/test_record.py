"""`python -m parity record`: a pair compared from two folders as `compare FILE.py` compares it, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity.cli import main
from parity.pair.file import compare_file
from parity.record.compare import compare_folders
from parity.record.tensors import as_tensors
from twinstep.errors import UserError

ROOT = Path(__file__).parents[2]

PAIR = """
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name


def torch_side():
    import torch
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    return module, [np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)]


def jax_side(state_dict):
    return port, {name: x.detach().cpu().numpy() for name, x in state_dict.items()}


def port(w, x):
    x = checkpoint_name(x @ w["0.weight"].T + w["0.bias"], "0")
    x = checkpoint_name(norm(x, w, "1"), "1")
    x = checkpoint_name(jax.nn.gelu(x, approximate=False), "2")
    x = checkpoint_name(norm(x, w, "3"), "3")
    return x @ w["4.weight"].T + w["4.bias"]


def norm(x, w, name):
    return jax.nn.standardize(x.astype(np.float32), epsilon=1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
"""
BUG = PAIR.replace("approximate=False", "approximate=True")
OTHER = PAIR.replace("nn.GELU()", "nn.GELU('tanh')")
CAST = """
    class Cast(nn.Sequential):
        def forward(self, x):
            return super().forward(x.to(self[0].weight))
"""
TWO_OUTPUTS = """
def torch_side():
    import numpy as np
    import torch

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

        def forward(self, x):
            y = self.first(x)
            return y, self.second(y)

    torch.manual_seed(0)
    return Two(), [np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)]


def jax_side(state_dict):
    return port, {name: x.numpy() for name, x in state_dict.items() if name.startswith("first")}


def port(w, x):
    return x @ w["first.weight"].T + w["first.bias"]
"""
TRAINED = """
import jax.numpy as jnp
import numpy as np


def torch_side():
    import torch

    return torch.nn.BatchNorm1d(4), [np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)]


def jax_side(state_dict):
    return port, {"scale": state_dict["weight"].numpy(), "shift": state_dict["bias"].numpy()}


def port(w, buffers, x):
    mean, var = x.mean(0), x.var(0)
    after = {"mean": 0.9 * buffers["mean"] + 0.1 * mean, "var": 0.9 * buffers["var"] + MOMENTUM * var * 6 / 5}
    return (x - mean) / jnp.sqrt(var + 1e-5) * w["scale"] + w["shift"], after


MOMENTUM = 0.1
OPTIONS = {"buffers": {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}, "steps": 1}
"""


def record(place: Path, text: str, side: str, name: str, *flags: object) -> Path:
    """One side of the pair in this text, in the folder `name`."""
    path = place / f"{name}.py"
    path.write_text(text)
    out = place / name
    assert main(["record", str(path), "--side", side, "--out", str(out), *map(str, flags)]) == 0
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The pair recorded in float64 and in float32, and wrong versions of either side."""
    place = tmp_path_factory.mktemp("recordings")
    torch, narrow = record(place, PAIR, "torch", "torch"), record(place, PAIR, "torch", "narrow", "--dtype", "float32")
    return {
        "torch": torch,
        "jax": record(place, PAIR, "jax", "jax", "--weights", torch),
        "bug": record(place, BUG, "jax", "bug", "--weights", torch),
        "other": record(place, OTHER, "torch", "other", "--weights", torch),
        "narrow": narrow,
        "jax narrow": record(place, PAIR, "jax", "jax_narrow", "--weights", narrow, "--dtype", "float32"),
    }


def compared(folders: dict[str, Path], *names: str):
    return compare_folders(*(folders[name] for name in names))


def test_two_folders_give_the_exit_code_and_the_reports_of_compare(folders, tmp_path, capsys):
    for name, code in (("jax", 0), ("bug", 1)):
        argv = ["compare", str(folders["torch"]), str(folders[name]), "--out-dir", str(tmp_path / "out")]
        assert main(argv) == code
        found = json.loads((tmp_path / "out" / "parity.json").read_text())
        assert found["verdict"] == ("agrees" if code == 0 else "diverges")
        assert code == 0 or found["first_divergence"]["tensor"] == "2"
        assert found["command"] == f"python -m parity compare {folders['torch']} {folders[name]}"
        assert (tmp_path / "out" / "report.html").is_file()
        assert "activations" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "text"), [("jax", PAIR), pytest.param("bug", BUG, marks=pytest.mark.slow)])
def test_folders_are_judged_as_the_file_is(folders, tmp_path, name, text):
    path = tmp_path / "my_port.py"
    path.write_text(text)
    whole, halves = compare_file(path, None), compared(folders, "torch", name)
    assert halves.first_divergence == whole.first_divergence
    assert {s: x.compared for s, x in halves.stages.items()} == {s: x.compared for s, x in whole.stages.items()}
    notes = [note.replace(str(path), f"{folders[name]}.py") for note in whole.notes]
    assert [note for note in halves.notes if "different files" not in note] == notes
    assert "Casts to a narrower float in JAX" in notes[-1]
    if name == "bug":
        assert (halves.first_divergence.stage, halves.first_divergence.tensor) == ("activations", "2")


def test_the_order_of_two_sides_does_not_matter(folders):
    assert compared(folders, "jax", "torch").sentence == compared(folders, "torch", "jax").sentence


def test_in_float32_eight_seeds_are_recorded_and_compared(folders):
    result = compared(folders, "narrow", "jax narrow")
    assert (result.verdict, result.seeds, result.dtype) == ("agrees", 8, "float32")
    assert result.stages["activations"].ratio < 4


def test_two_precisions_of_one_side_agree_by_the_rounding_of_the_narrower(folders):
    for names in (("torch", "narrow"), ("narrow", "torch"), ("jax", "jax narrow")):
        result = compared(folders, *names)
        assert (result.verdict, result.dtype) == ("agrees", "float32"), result.sentence
    assert "judged by what float32 rounds" in " ".join(result.notes)
    first = compared(folders, "narrow", "other").first_divergence
    assert (first.stage, first.tensor) == ("activations", "2")


def test_a_module_in_bfloat16_is_judged_by_its_own_rounding(tmp_path):
    text = PAIR.replace("from torch import nn\n", f"from torch import nn\n{CAST}")
    text = text.replace("nn.Sequential(nn.L", "Cast(nn.L")
    narrow = text.replace("return module,", "return module.bfloat16(),")
    low = record(tmp_path, narrow, "torch", "low", "--dtype", "bfloat16")
    for tensor, wide in (("", text), ("2", text.replace("nn.GELU()", "nn.Tanh()"))):
        name = f"high{tensor}"
        result = compare_folders(record(tmp_path, wide, "torch", name, "--dtype", "float32", "--weights", low), low)
        assert result.dtype == "bfloat16"
        assert (result.first_divergence.tensor if tensor else result.verdict) == (tensor or "agrees"), result.sentence


def test_two_commits_of_one_side_diverge_where_they_differ_and_are_called_by_their_folders(folders):
    for names in (("torch", "other"), ("jax", "bug")):
        result = compared(folders, *names)
        assert (result.first_divergence.stage, result.first_divergence.tensor) == ("activations", "2")
        assert f"Sequential of {folders[names[1]]} diverges from {folders[names[0]]}" in result.sentence


def test_a_parameter_that_one_version_lacks_or_has_in_another_shape_is_named(folders, tmp_path):
    for change, tensor, note in (
        (("(6, 8)", "(6, 8, bias=False)"), "0.bias", f"not there in {tmp_path / 'changed0'}"),
        (("nn.LayerNorm(8), nn.GELU()", "nn.LayerNorm((5, 8)), nn.GELU()"), "1.weight", "shape (8,) in "),
    ):
        name = f"changed{len(list(tmp_path.glob('*.py')))}"
        first = compare_folders(
            folders["torch"], record(tmp_path, PAIR.replace(*change), "torch", name)
        ).first_divergence
        assert (first.stage, first.tensor) == ("weights", tensor)
        assert first.note.startswith(note)


def test_rules_for_weights_and_layers_are_recorded(folders, tmp_path):
    weights, layers = 'parity.Rule("(.+)", r"\\1")', 'parity.Rule("[12]", r"\\g<0>")'
    rules = f'import parity\nOPTIONS = {{"weights": [{weights}], "layers": [{layers}]}}'
    jax = record(tmp_path, f"{PAIR}\n{rules}\n", "jax", "jax", "--weights", folders["torch"])
    result = compare_folders(folders["torch"], jax)
    assert result.verdict == "agrees", result.sentence
    assert {t.tensor for t in result.tensors if t.stage == "activations"} == {"1", "2", "output"}


def test_a_recording_is_json_and_safetensors(folders):
    suffixes = {path.suffix for folder in folders.values() for path in folder.iterdir()}
    assert suffixes == {".json", ".safetensors"}


def test_a_port_may_return_the_first_output_alone(tmp_path):
    torch = record(tmp_path, TWO_OUTPUTS, "torch", "two")
    result = compare_folders(torch, record(tmp_path, TWO_OUTPUTS, "jax", "one", "--weights", torch))
    judged = {t.tensor: t.status[0] for t in result.tensors if t.stage == "gradients"}
    assert judged["first.weight"] == "agrees"
    assert judged["second.weight"] == "unchecked"
    assert result.verdict == "agrees"
    assert "Outputs of torch that were not compared: 1." in result.notes


@pytest.mark.parametrize(("momentum", "verdict"), [("0.1", "agrees"), ("0.2", "diverges")])
def test_statistics_after_the_pass_are_compared(tmp_path, momentum, verdict):
    text = TRAINED.replace("MOMENTUM = 0.1", f"MOMENTUM = {momentum}")
    torch = record(tmp_path, text, "torch", "torch")
    result = compare_folders(torch, record(tmp_path, text, "jax", "jax", "--weights", torch))
    assert result.verdict == verdict, result.sentence
    if verdict == "diverges":
        assert result.first_divergence.tensor == "var (after the pass)"
    assert "Not recorded, and not compared: OPTIONS' steps." in result.notes


WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
sys.modules["coverage"] = None  # of the same extra
from parity.cli import main
from twinstep.errors import run_command

file, torch, out = sys.argv[1:]
assert run_command(main, ["record", file, "--side", "jax", "--weights", torch, "--out", f"{out}/jax"]) == 0
assert run_command(main, ["compare", torch, f"{out}/jax", "--out-dir", f"{out}/report"]) == 0
assert run_command(main, ["record", file, "--side", "torch", "--out", f"{out}/torch"]) == 2
open(file, "a").write("import torch")
assert run_command(main, ["record", file, "--side", "jax", "--weights", torch, "--out", f"{out}/again"]) == 2
"""


@pytest.mark.slow
def test_the_jax_side_is_recorded_and_two_folders_are_compared_without_torch(folders, tmp_path):
    path = tmp_path / "my_port.py"
    path.write_text(PAIR)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path), str(folders["torch"]), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("error: No module named 'torch', which parity needs")
    assert "import torch within torch_side: the JAX side does without it" in second


def test_an_array_answers_as_a_tensor_does_in_a_conversion():
    given = {"w": np.ones((2, 3), ml_dtypes.bfloat16)}
    w = as_tensors(given)["w"].detach().cpu().float().numpy()
    assert type(w) is np.ndarray
    assert w.dtype == np.float32
    w += 1
    assert (given["w"] == 1).all()


def refused(capsys, *argv: object) -> str:
    """What the command says, once it has ended as bad input does."""
    with pytest.raises(UserError) as error:
        main(list(map(str, argv)))
    assert "\n" not in str(error.value)
    return str(error.value)


def damage(folder: Path, to: Path, file: str, change) -> Path:
    """A copy with one file changed."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(change(path.read_bytes()) if path.name == file else path.read_bytes())
    return to


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("record.json", lambda data: data[:-40], "cannot be read"),
        ("record.json", lambda data: b"[]", "cannot be read"),
        ("record.json", lambda data: data.replace(b'"Sequential"', b'"Linear"'), "is damaged"),
        ("record.json", lambda data: data.replace(b'"format": 1', b'"format": 7'), "is of format 7, and this version"),
        ("seed-0.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is damaged"),
        ("record.safetensors", lambda data: data[:50], "is damaged"),
    ],
)
def test_a_damaged_folder_is_refused(folders, tmp_path, capsys, file, change, message):
    broken = damage(folders["jax"], tmp_path / "broken", file, change)
    assert message in refused(capsys, "compare", folders["torch"], broken, "--out-dir", tmp_path / "out")


def test_folders_that_do_not_go_together_are_refused(folders, tmp_path, capsys):
    compare = lambda *argv: refused(capsys, "compare", *argv)
    assert "is no folder" in compare(folders["torch"], tmp_path / "none")
    assert "has no record.json" in compare(folders["torch"], tmp_path)
    assert "pass one FILE.py, or two folders" in compare(folders["torch"])
    assert "pass one FILE.py, or two folders" in compare(*[folders["torch"]] * 3)
    assert "pass --dtype to `python -m parity record`" in compare(
        folders["torch"], folders["jax"], "--dtype", "float32"
    )
    assert "record both with one --dtype" in compare(folders["narrow"], folders["jax"])
    again = record(tmp_path, PAIR.replace("manual_seed(0)", "manual_seed(1)"), "torch", "again")
    assert f"record it again with --weights {again}" in compare(again, folders["jax"])
    inputs = record(tmp_path, PAIR.replace("default_rng(0)", "default_rng(1)"), "torch", "inputs")
    assert "from other inputs" in compare(folders["torch"], inputs)
    losses = PAIR + '\nOPTIONS = {"losses": (lambda y, x: y.sum(), lambda y, x: y.sum())}\n'
    assert "has `losses` of its own" in compare(record(tmp_path, losses, "torch", "losses"), folders["jax"])


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (PAIR, ["--side", "jax"], "pass --weights, a folder recorded with --side torch"),
        (PAIR, ["--side", "jax", "--weights", "jax"], "is a recording of the jax side; pass one of the torch side"),
        (PAIR, ["--side", "torch", "--weights", "none"], "none is no folder"),
        (PAIR, ["--side", "torch", "--dtype", "half"], "dtype is 'half'; choose from"),
        (PAIR, ["--side", "torch", "--out", "torch"], "is there already; pass --out with a new folder"),
        (PAIR.replace("torch_side", "other"), ["--side", "torch"], "defines no function torch_side"),
        (PAIR.replace("jax_side", "other"), ["--side", "jax", "--weights", "torch"], "defines no function jax_side"),
        (PAIR + "\nOPTIONS = {'rule': 1}\n", ["--side", "torch"], "OPTIONS names 'rule'"),
        (TWO_OUTPUTS, ["--side", "torch", "--weights", "torch"], "0.weight is among the weights of"),
        (PAIR.replace("(8, 3)", "(8, 2)"), ["--side", "torch", "--weights", "torch"], "4.weight has shape (2, 8), and"),
        (TRAINED, ["--side", "jax", "--weights", "torch"], "jax_side raises KeyError: 'weight'"),
        (
            PAIR.replace(' + w[f"{name}', ' + w[f"{name}x'),
            ["--side", "jax", "--weights", "torch"],
            "the port raises KeyE",
        ),
        (PAIR.replace("np.float32)]", "np.float32), {1}]"), ["--side", "torch"], "Sequential.forward() takes"),
        ("import torch_of_none", ["--side", "torch"], "No module named 'torch_of_none'"),
    ],
)
def test_what_cannot_be_recorded_is_refused_and_nothing_is_written(folders, tmp_path, capsys, text, flags, message):
    path = tmp_path / "my_port.py"
    path.write_text(text)
    flags = [str(folders.get(flag, flag)) if before in ("--weights", "--out") else flag
             for before, flag in zip(["", *flags], flags, strict=False)]  # fmt: skip
    out = [] if "--out" in flags else ["--out", tmp_path / "out"]
    assert message in refused(capsys, "record", path, *flags, *out)
    assert not (tmp_path / "out").exists()
