"""JAX on any number of devices against PyTorch on one process: losses, gradients, parameters, buffers, evaluation.

That two torch processes are as one is `tests/torch_ref/test_parallel.py`'s, that two JAX devices are as one
`tests/jax_impl/test_parallel.py`'s; here the two frameworks meet.
"""

import pytest

from tests.helpers import torch_trajectories
from tests.helpers.trajectories import CASES, largest_difference, make_config, run, trajectories

TOLERANCE = 1e-12  # relative L2 in float64 after ten steps; 6e-15 was the largest seen


def check(name: str, found: dict, expected: dict) -> None:
    error, worst = largest_difference(found, expected, skip="state.")  # optimizer state is laid out differently
    assert error <= TOLERANCE, f"{name}: {worst} is off by {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize(("case", "accumulation", "mode"), [("gpt", 2, "pmap"), ("mlp", 1, "fsdp")])
def test_jax_trains_as_torch_does(case, accumulation, mode, x64):
    config = make_config(case, accumulation)
    check(case, run(config, mode), torch_trajectories.run(config))


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_jax_on_many_devices_trains_as_torch_does_on_one_and_on_two_processes(devices, tmp_path):
    runs = [(case, accumulation, mode) for case in CASES for accumulation in (1, 2) for mode in ("pmap", "fsdp")]
    found = trajectories(devices, runs, tmp_path / "jax.npz")
    two_processes = torch_trajectories.torchrun(2, sorted({run[:2] for run in runs}), tmp_path / "torch.npz")
    for case, accumulation, mode in runs:
        name = f"{case}/{accumulation}/{mode}"
        check(name, found[name], torch_trajectories.run(make_config(case, accumulation)))
        check(name, found[name], two_processes[f"{case}/{accumulation}"])
