"""DistributedDataParallel over two processes, and a compiled model, train as one process does."""

import gc
import json
import shutil
from dataclasses import replace

import pytest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.torch_trajectories import run, torchrun
from tests.helpers.trajectories import largest_difference, make_config
from tests.helpers.trust import train
from torch_ref import parallel, processes
from twinstep.config import Config, DeviceConfig
from twinstep.errors import UserError

TOLERANCE = 1e-12  # relative L2 in float64 after ten steps; 6e-15 was the largest seen


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    # mlp in one micro-step tests BatchNorm over the processes, gpt in two the gradients kept back until the last.
    found = torchrun(2, [("gpt", 2), ("mlp", 1)], tmp_path / "two.npz")
    for name, arrays in found.items():
        case, accumulation = name.split("/")
        error, worst = largest_difference(arrays, run(make_config(case, int(accumulation))))
        assert error <= TOLERANCE, f"{name}: {worst} is off by {error:.1e}"


def test_data_parallel_without_torchrun_says_how_to_start_it():
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        parallel.choose_mode(Config(devices=DeviceConfig(parallel="pmap")))


def test_a_run_with_nothing_left_to_do_lets_go_of_its_wrapped_model(tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    held = []

    def close() -> None:
        gc.collect()
        held.append(sum(type(found) is DistributedDataParallel for found in gc.get_objects()))
        processes.dist.destroy_process_group()

    monkeypatch.setattr(processes, "close", close)
    argv = ["linear", "--steps", "1", "--batch-size", "8", "--eval-batches", "1", "--out-dir", str(tmp_path / "run")]
    assert train("torch", argv) == 0
    assert train("torch", [*argv, "--resume"]) == 0
    assert held == [0, 0]


def test_flags_of_the_other_trainer_are_refused():
    with pytest.raises(UserError, match="torchrun --nnodes"):
        processes.initialize(Config(devices=DeviceConfig(coordinator="localhost:1234")))
    with pytest.raises(UserError, match="fsdp is only in jax_impl"):
        parallel.choose_mode(replace(Config(), devices=DeviceConfig(parallel="fsdp")))


def test_compile_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(parallel.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler"):
        parallel.wrap(Config(devices=DeviceConfig(compile=True)), nn.Linear(1, 1), "jit")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile's own
def test_a_compiled_run_trains_as_an_eager_one_does(tmp_path):
    argv = ["linear", "--dtype", "float64", "--steps", "20", "--log-every", "1", "--out-dir"]
    losses = []
    for name, flags in {"eager": [], "compiled": ["--compile"]}.items():
        assert train("torch", [*argv, str(tmp_path / name), *flags]) == 0
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12, abs=0)
