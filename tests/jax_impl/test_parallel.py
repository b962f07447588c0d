"""One device, several, and divided among them: one result, no copy of the state, no second compilation."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jax_impl import fsdp, parallel
from jax_impl.checksum import inspect_arrays
from jax_impl.mesh import array_spec, shard_dim
from jax_impl.models import make_model
from jax_impl.optimizer import make_optimizer
from jax_impl.tree import flatten
from tests.helpers.jaxprs import times_compiled
from tests.helpers.trajectories import (
    CASES,
    environment,
    largest_difference,
    make_batches,
    make_config,
    run,
    trajectories,
)
from twinstep.config import Config, DeviceConfig
from twinstep.errors import UserError
from twinstep.flops import newton_schulz_flops
from twinstep.init import initial_weights

MODES = ("pmap", "fsdp")
TOLERANCE = 1e-12  # relative L2 in float64 after ten steps; 6e-15 was the largest seen


def config_for(mode: Any, **train: Any) -> Config:
    config = make_config("linear", 1)
    return replace(config, devices=DeviceConfig(parallel=mode), train=replace(config.train, **train))


def start(config: Config, mode: str):
    model = make_model(config, parallel.axis_name(mode), parallel.attention(), parallel.scans_blocks(mode))
    optimizer = make_optimizer(config, model.params, *parallel.muon_stacks(mode))
    steps = parallel.make_steps(config, mode, model, optimizer)
    shapes = {name: s.shape for name, s in (flatten(model.params) | flatten(model.buffers)).items()}
    return steps, steps.init_state(initial_weights(shapes, 0, "nonzero"))


def test_an_array_is_sharded_along_its_first_dimension_that_the_devices_share_evenly():
    assert shard_dim((8, 32), 4) == 0
    assert shard_dim((32, 32), 4) == 0
    assert shard_dim((61, 32), 4) == 1
    assert shard_dim((61, 31), 4) is None
    assert shard_dim((), 4) is None


def test_parameters_are_gathered_in_the_compute_dtype_and_tables_in_their_own():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    model = make_model(replace(CASES["gpt"], train=replace(CASES["gpt"].train, dtype="bfloat16")))
    seen = {}
    sharded = fsdp.sharded_model(model, mesh, jnp.dtype("bfloat16"))

    def look(params):
        module = sharded.bind(params, {}, train=True)
        seen["head"], seen["table"] = module.lm_head.weight[...].dtype, module.wte.weight[...].dtype
        return 0

    specs = jax.tree.map(lambda s: array_spec(s.shape, mesh), model.params)
    jax.eval_shape(jax.shard_map(look, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec()), model.params)
    assert seen == {"head": jnp.bfloat16, "table": jnp.float32}


@pytest.mark.parametrize("mode", ["jit", *MODES])
def test_a_step_donates_its_state_and_compiles_once(mode, x64):
    config = config_for(mode)
    steps, state = start(config, mode)
    compilations: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    counts = []
    for batch in make_batches(config):
        before = state
        state, metrics = steps.train(state, steps.place_train_batch(batch))
        float(metrics["loss"])
        counts.append(len(compilations))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    jax.monitoring.unregister_event_duration_listener(listen)
    assert counts[0] > 0, "the counter sees no compilation at all"
    assert counts[-1] == counts[1], "compiled again after the second step"
    if mode != "pmap":  # whose wrapper does not tell
        assert times_compiled(steps.compiled) == 1


def test_jit_on_several_devices_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with pytest.raises(UserError, match="there are 2; pass --parallel pmap"):
        parallel.choose_mode(config_for("jit"))


@pytest.mark.parametrize("mode", ["auto", *MODES])
def test_a_batch_that_the_devices_cannot_share_is_refused(mode, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(UserError, match="not divisible by 3 devices; pass a multiple of 6"):
        parallel.choose_mode(config_for(mode, accumulation=2))


def test_auto_is_pmap_where_there_are_several_devices(monkeypatch):
    assert parallel.choose_mode(config_for("auto")) == "jit"
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert parallel.choose_mode(config_for("auto")) == "pmap"


def check_invariance(devices: int, runs: list[tuple[str, int]], out) -> None:
    found = trajectories(devices, [(*case, mode) for case in runs for mode in MODES], out)
    for case, accumulation in runs:
        expected = run(make_config(case, accumulation), "jit")
        for mode in MODES:
            error, name = largest_difference(found[f"{case}/{accumulation}/{mode}"], expected)
            assert error <= TOLERANCE, (
                f"{case}/{accumulation}/{mode} on {devices} devices: {name} is off by {error:.1e}"
            )


@pytest.mark.slow
def test_two_devices_train_as_one_does(tmp_path, x64):
    check_invariance(2, [("gpt", 2), ("mlp", 1)], tmp_path / "two.npz")


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_trains_as_one_does(devices, tmp_path, x64):
    check_invariance(devices, [(case, a) for case in CASES for a in (1, 2)], tmp_path / "found.npz")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gpt", "linear"])
def test_two_micro_steps_are_one_of_twice_the_size(case, x64):
    one, two = (run(make_config(case, accumulation), "jit") for accumulation in (1, 2))
    error, name = largest_difference(two, one, skip="evaluation")  # of the first micro-batch alone
    assert error <= TOLERANCE, f"{name} is off by {error:.1e}"


@pytest.mark.slow
def test_each_of_two_devices_holds_half_orthogonalizes_half_and_checks_half_before_a_save():
    done = subprocess.run(
        [sys.executable, "-m", "tests.jax_impl.test_parallel"],
        env=environment(XLA_FLAGS="--xla_force_host_platform_device_count=2"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gathered_by_a_save"] == 0
    assert found["bytes_here"] <= 1.02 * found["bytes_all"] / 2  # counters and the vocabulary's 61 rows aside
    expected = newton_schulz_flops(make_config("gpt", 1)) / 2
    # Element-wise work beside the products adds a fifth at this size; all on each device would be twice that.
    assert expected <= found["orthogonalization_flops"] <= 1.3 * expected


def measure_shares() -> dict[str, float]:
    """Bytes of optimizer state on the first device and in all, operations per device of five Newton-Schulz steps, and
    how many arrays are gathered for the checksums of a checkpoint.

    The operations are what five steps more cost in XLA's count, which is exact where a program has no loops.
    """
    flops = []
    for newton_schulz_steps in (5, 10):
        config = make_config("gpt", 1)
        config = replace(config, optimizer=replace(config.optimizer, newton_schulz_steps=newton_schulz_steps))
        steps, state = start(config, "fsdp")
        batch = steps.place_train_batch(next(make_batches(config)))
        signal = jax.ShapeDtypeStruct((jax.device_count(),), jnp.int32)
        flops.append(steps.compiled.lower(state, batch, signal).compile().cost_analysis()["flops"])
    leaves = jax.tree.leaves(state.opt_state)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return {
        "bytes_here": here,
        "bytes_all": sum(leaf.nbytes for leaf in leaves),
        "orthogonalization_flops": flops[1] - flops[0],
        "gathered_by_a_save": inspect_arrays.lower(state).compile().as_text().count(" all-gather("),
    }


if __name__ == "__main__":
    print(json.dumps(measure_shares()))
