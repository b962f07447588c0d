"""`--platform` and `--matmul-precision`: where each side runs, how the report says it, and TF32 called by its name."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import torch

import parity
import parity.check
import parity.torch_side
from parity import platforms
from parity.check import check, check_here
from parity.check_configs import subject
from parity.child import child_environment
from parity.cli import main
from parity.faults.catalogue import CATALOGUE
from parity.pair import compare as pair_compare
from parity.precision import with_hint
from parity.report import print_report, report_page
from parity.request import Request
from parity.result import Divergence, Result
from parity.torch_side import TorchSide
from tests.parity.test_result import a_result
from torch_ref.models import weight_shapes
from twinstep.config import TrainConfig
from twinstep.data import load_data
from twinstep.errors import UserError
from twinstep.init import initial_weights
from twinstep.resolve import fill_in
from twinstep.terminal import table_console

ROOT = Path(__file__).parents[2]
(TF32,) = (fault for fault in CATALOGUE if fault.name == "products in TF32")


def in_dtype(config, dtype, **train):
    return replace(config, train=replace(config.train, dtype=dtype, **train))


# ------------------------------------------------------------------------------------------------- what is asked for
@pytest.mark.parametrize(("platform", "extra"), [("cuda", "cuda13"), ("tpu", "tpu")])
def test_a_platform_that_is_not_there_is_one_line_with_the_extra_to_install(platform, extra):
    with pytest.raises(UserError, match=rf"--platform {platform}: JAX sees only cpu; run pip install .*\.\[{extra}\]"):
        platforms.check_platform(platform, 1)
    with pytest.raises(UserError, match=rf"platform='{platform}': .*\.\[{extra}\]"):
        platforms.jax_device(platform)


def test_the_command_says_so_and_ends_with_2(tmp_path):
    argv = ["check", "linear", "--steps", "3", "--platform", "cuda", "--out-dir", str(tmp_path / "out")]
    hidden = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", "parity", *argv], env=hidden, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --platform cuda: ")
    assert list((tmp_path / "out").iterdir()) == []


def test_jax_on_another_platform_is_refused_and_so_are_some_of_the_gpus(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"--platform cpu: JAX sees only cpu; set JAX_PLATFORMS=cpu"):
        platforms.check_platform("cpu", 1)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    platforms.check_platform("cuda", 1)
    platforms.check_platform("cuda", 8)
    with pytest.raises(UserError, match="--platform cuda --devices 2: JAX sees 8; pass 1 or 8"):
        platforms.check_platform("cuda", 2)


def test_flags_reach_the_request_and_the_command(tmp_path, monkeypatch, capsys):
    asked = []

    def remembered(request):
        asked.append(Request.from_json(json.loads(json.dumps(request.to_json()))))
        return a_result(None)

    monkeypatch.setattr(parity.check, "check", remembered)
    words = "check mlp --dtype float32 --platform cuda --matmul-precision default --out-dir"
    assert main([*words.split(), str(tmp_path / "out")]) == 0
    (request,) = asked
    assert (request.platform, request.config.train.matmul_precision) == ("cuda", "default")
    command = json.loads((tmp_path / "out" / "parity.json").read_text())["command"]
    assert command.endswith("--dtype float32 --matmul-precision default --platform cuda")


@pytest.mark.parametrize(("platform", "allowed"), [("cpu", "cpu"), ("cuda", "cuda,cpu"), ("tpu", "tpu,cpu")])
def test_the_childs_jax_sees_the_platform_and_on_a_gpu_leaves_memory_to_torch(platform, allowed, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    environment = child_environment(False, 1, platform)
    assert environment["JAX_PLATFORMS"] == allowed
    assert environment.get("XLA_PYTHON_CLIENT_PREALLOCATE") == ("false" if platform == "cuda" else None)


def test_only_a_float64_check_on_the_cpu_runs_in_this_process(monkeypatch):
    monkeypatch.setattr(parity.check, "check_watched", lambda request: "here")
    monkeypatch.setattr(parity.check, "check_in_child", lambda request: "child")
    request = Request(subject("linear", "float64", 3, 0))
    assert check(request) == "here"
    assert check(replace(request, platform="cuda")) == "child"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert check(request) == "child"


# ------------------------------------------------------------------------------------------------------- both sides
def test_both_sides_orthogonalize_in_one_dtype_wherever_each_runs(monkeypatch):
    config = subject("gpt", "float32", 3, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    expected = {"float32": dict.fromkeys(("cpu", "cuda", "tpu"), "float32"),
                "bfloat16": {"cpu": "float32", "cuda": "bfloat16", "tpu": "bfloat16"}}  # fmt: skip
    for dtype, on in expected.items():
        for platform, orthogonalization in on.items():
            found = platforms.with_orthogonalization(platform, in_dtype(config, dtype))
            assert found.optimizer.newton_schulz_dtype == orthogonalization
    exact = in_dtype(config, "float64")
    chosen = replace(config, optimizer=replace(config.optimizer, newton_schulz_dtype="bfloat16"))
    assert platforms.with_orthogonalization("cuda", exact) is exact
    assert platforms.with_orthogonalization("cuda", chosen) is chosen


@pytest.mark.parametrize("model", ["gpt", "mlp"])
def test_all_of_the_torch_side_is_on_its_device(model, monkeypatch):
    """On torch's device `meta`, which holds shapes only: a tensor left on the CPU would not mix with it."""
    config = subject(model, "float64", 3, 0)
    data = load_data(config)
    config = fill_in(config, data)
    devices = set()

    def zeros(tensor):
        devices.add(tensor.device.type)
        return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))

    monkeypatch.setattr(parity.torch_side, "to_numpy", zeros)
    monkeypatch.setattr("parity.capture.to_numpy", zeros)
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 1.0)  # of AdamW's count and the sums
    side = TorchSide(config, torch.device("meta"))
    shapes = weight_shapes(side.model)
    start = side.initial_state(initial_weights(shapes, 0, "nonzero"))
    first, second = side.batches(data, 0, 2)
    stepped, captured = side.train_and_capture(start, first)
    stepped = side.train_step(stepped.after, second)
    gradients = {name: np.zeros(shapes[name]) for name in stepped.gradients}
    side.optimize(stepped.after, gradients)
    side.evaluate(stepped.after, data, 1)
    assert captured.gradients
    assert devices == {"meta"}


def test_jax_computes_on_the_device_of_the_platform_and_torch_on_that_beside_it(tmp_path):
    """Two CPU devices: what is on the second was put there."""
    script = """
import jax, numpy as np, optax, torch
import parity
import parity.pair.compare
from parity.pair import models

parity.pair.compare.jax_device = lambda platform: jax.devices()[1]
found = []

class Watched:
    __getattr__ = lambda self, name: getattr(np, name)

    def asarray(self, x, *args):
        found.extend([x] if isinstance(x, jax.Array) else [])
        return np.asarray(x, *args)

models.np = Watched()
module = torch.nn.Linear(3, 2, bias=False)
function = lambda params, x: x @ params["weight"].T
params = {"weight": jax.device_put(module.weight.detach().numpy(), jax.devices()[0])}
optimizers = (lambda parameters: torch.optim.SGD(parameters, 0.1), optax.sgd(0.1))
result = parity.compare(module, function, params, [np.ones((4, 3))], optimizers=optimizers)
assert result.verdict == "agrees", result.sentence
assert found and all(array.devices() == {jax.devices()[1]} for array in found)
"""
    environment = {**child_environment(False, 2), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, cwd=tmp_path)


def test_compare_leaves_the_users_module_where_and_as_it_is(monkeypatch):
    moved = []
    monkeypatch.setattr(pair_compare, "torch_device", lambda platform: moved.append(platform) or torch.device("cpu"))
    module = torch.nn.Linear(3, 2, bias=False)
    before = module.weight.detach().clone()
    params = {"weight": before.numpy()}
    optimizers = (lambda parameters: torch.optim.SGD(parameters, 0.1), optax.sgd(0.1))
    function = lambda params, x: x @ params["weight"].T
    result = parity.compare(module, function, params, [np.ones((4, 3))], optimizers=optimizers, platform="cpu")
    assert result.verdict == "agrees", result.sentence
    assert moved == ["cpu"]
    assert module.weight.dtype == torch.float32
    assert module.weight.grad is None
    assert torch.equal(module.weight, before)
    with pytest.raises(UserError, match="platform='cuda'"):
        parity.compare(module, function, params, [np.ones((4, 3))], platform="cuda")


# ------------------------------------------------------------------------------------------------------- the report
def test_the_report_says_on_what_each_side_ran(capsys):
    environment = {"platform": "cuda", "jax devices": "1 x NVIDIA H200", "torch device": "cpu (torch sees no GPU)"}
    result = replace(a_result(None), environment=environment)
    print_report(result, table_console())
    said = "JAX on 1 x NVIDIA H200 (cuda), torch on cpu (torch sees no GPU)"
    assert said in capsys.readouterr().out
    assert said in report_page(result)


def test_a_torch_without_cuda_beside_a_gpu_is_said(monkeypatch):
    cpu = torch.device("cpu")
    assert platforms.describe_torch("cpu", cpu) == platforms.describe_torch("tpu", cpu) == "cpu"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert platforms.describe_torch("cuda", cpu) == "cpu (this torch is built without CUDA)"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert platforms.describe_torch("cuda", cpu) == "cpu (torch sees no GPU)"


# ------------------------------------------------------------------------------------------------------------- TF32
def test_products_in_tf32_diverge_in_float32_and_are_called_by_their_name():
    config = in_dtype(subject("mlp", "float32", 3, 0), "float32", matmul_precision="default")
    request = Request(config, inits=("nonzero",), platform="cuda")
    result = check_here(request, around=TF32.inject)
    first = result.first_divergence
    assert (first.stage, first.tensor) == ("activations", "fc1")
    assert first.relative_l2 > 100 * first.budget
    assert "in TF32 (ten bits of mantissa) on one side: pass --matmul-precision highest" in result.sentence
    assert "torch.backends.cuda.matmul.allow_tf32" in result.sentence
    assert Result.from_json(json.loads(json.dumps(result.to_json()))).sentence == result.sentence
    assert first.hint in report_page(result).replace("&#x27;", "'")


AS_IT_COMES = TrainConfig(dtype="float32", matmul_precision="default")
HINTS = {
    "TF32 on a GPU": ("activations", 2.7e-4, AS_IT_COMES, "cuda", "TF32"),
    "grown over some layers": ("gradients", 1.1e-3, AS_IT_COMES, "cuda", "TF32"),
    "bfloat16 passes on a TPU": ("activations", 2.2e-3, AS_IT_COMES, "tpu", "bfloat16 passes"),
    "a wrong sign": ("activations", 1.4, AS_IT_COMES, "cuda", None),
    "an eps": ("activations", 5e-6, AS_IT_COMES, "cuda", None),
    "a CPU has no TF32": ("activations", 2.7e-4, AS_IT_COMES, "cpu", None),
    "float64 is never TF32": ("activations", 2.7e-4, replace(AS_IT_COMES, dtype="float64"), "cuda", None),
    "what was asked for is not advised": ("activations", 2.7e-4, TrainConfig(dtype="float32"), "cuda", None),
    "no product there": ("schedule", 2.7e-4, AS_IT_COMES, "cuda", None),
    "not there at all": ("activations", float("inf"), AS_IT_COMES, "cuda", None),
}


@pytest.mark.parametrize("case", HINTS)
def test_only_an_error_of_the_size_of_rounded_products_gets_the_hint(case):
    stage, error, train, platform, names = HINTS[case]
    found = with_hint(Divergence(stage, "x", 0, "nonzero", error, 1e-7), train, platform)
    assert bool(found.hint) == (names is not None)
    assert (names or "") in found.hint
    assert with_hint(None, train, platform) is None


# ---------------------------------------------------------------------------------------------------- on a real GPU
@pytest.fixture(scope="session")
def gpu():
    """Skips where a JAX that may choose sees no GPU."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no NVIDIA GPU here")
    asks = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    seen = subprocess.run(asks, env=with_all_platforms(), capture_output=True, text=True, check=True).stdout.strip()
    if seen != "gpu":
        pytest.skip(f"JAX sees only {seen}")


def with_all_platforms() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "precision", "verdict"),
    [
        ("float64", "highest", "agrees"),
        ("float32", "highest", "agrees"),
        ("float32", "default", "diverges"),
        ("bfloat16", "highest", "agrees"),
    ],
)
def test_on_a_gpu_gpt_agrees_and_products_in_tf32_do_not(gpu, dtype, precision, verdict, tmp_path):
    words = f"-m parity check gpt --platform cuda --dtype {dtype} --steps 3 --matmul-precision {precision}".split()
    words += ["--out-dir", str(tmp_path / "report")]
    done = subprocess.run([sys.executable, *words], env=with_all_platforms(), capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads((tmp_path / "report" / "parity.json").read_text())
    assert found["verdict"] == verdict, found["sentence"]
    assert ("TF32" in found["sentence"]) == (verdict == "diverges"), found["sentence"]
    assert found["environment"]["platform"] == "cuda"
    assert "cpu" not in found["environment"]["jax devices"]
