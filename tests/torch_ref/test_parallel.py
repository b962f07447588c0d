"""DistributedDataParallel over two processes trains as one process does."""

import gc
from dataclasses import replace

import pytest
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
