"""What is read off a compiled program, and the bounds made from it; the compilation itself needs libtpu."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jax_impl import parallel
from jax_impl.aot import hlo
from jax_impl.aot.hlo import Collective
from jax_impl.aot.roofline import roofline, torus_seconds
from jax_impl.models.attention import causal_attention
from jax_impl.models.blockwise import blockwise_attention
from jax_impl.models.splash import splash_attention
from tests.helpers.trajectories import environment
from twinstep.chips import chip_of
from twinstep.errors import RunError

# A program with each case that is counted in a way of its own: a loop of five trips, one that counts from 1 to 4 and
# reads and writes one matrix of a stack, an asynchronous all-gather that is split into three fusions, a reduce-scatter
# written around an all-reduce, and the three notations of groups.
PROGRAM = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%region_1 (p: (f32[8,128])) -> (f32[8,128]) {
  %p = (f32[8,128]{1,0}) parameter(0)
  %x = f32[8,128]{1,0} get-tuple-element(%p), index=0
  %reduced = f32[8,128]{1,0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %t = (f32[8,128]{1,0}) tuple(%reduced)
}

%region_2 (p: (f32[8,128])) -> pred[] {
  ROOT %go = pred[] constant(true)
}

%fused_slice (all: f32[3,8,128], n: s32[]) -> f32[8,128] {
  %all = f32[3,8,128]{2,1,0} parameter(0)
  %n = s32[]{:S(6)} parameter(1)
  %zero = s32[]{:S(6)} constant(0)
  %one = f32[1,8,128]{2,1,0} dynamic-slice(%all, %n, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %flat = f32[8,128]{1,0} bitcast(%one)
}

%fused_update (all: f32[3,8,128], x: f32[8,128], n: s32[]) -> f32[3,8,128] {
  %all.1 = f32[3,8,128]{2,1,0} parameter(0)
  %x.1 = f32[8,128]{1,0} parameter(1)
  %n.1 = s32[]{:S(6)} parameter(2)
  %zero.1 = s32[]{:S(6)} constant(0)
  %row = f32[1,8,128]{2,1,0} bitcast(%x.1)
  ROOT %new = f32[3,8,128]{2,1,0} dynamic-update-slice(%all.1, %row, %n.1, %zero.1, %zero.1)
}

%region_3 (q: (s32[], f32[3,8,128])) -> (s32[], f32[3,8,128]) {
  %q = (s32[]{:S(6)}, f32[3,8,128]{2,1,0}) parameter(0)
  %n.2 = s32[]{:S(6)} get-tuple-element(%q), index=0
  %stack = f32[3,8,128]{2,1,0} get-tuple-element(%q), index=1
  %layer = f32[8,128]{1,0} fusion(%stack, %n.2), kind=kLoop, calls=%fused_slice
  %stack.1 = f32[3,8,128]{2,1,0} fusion(%stack, %layer, %n.2), kind=kLoop, calls=%fused_update
  %next = s32[]{:S(6)} add(%n.2, %n.2)
  ROOT %t.1 = (s32[]{:S(6)}, f32[3,8,128]{2,1,0}) tuple(%next, %stack.1)
}

%region_4 (q: (s32[], f32[3,8,128])) -> pred[] {
  %end = s32[]{:S(6)} constant(4)
  %q.1 = (s32[]{:S(6)}, f32[3,8,128]{2,1,0}) parameter(0)
  %n.3 = s32[]{:S(6)} get-tuple-element(%q.1), index=0
  ROOT %more = pred[]{:S(6)} compare(%n.3, %end), direction=LT
}

%fused_start (s: bf16[2,128]) -> bf16[8,128] {
  %s.1 = bf16[2,128]{1,0} parameter(0)
  %gather.1 = bf16[8,128]{1,0} all-gather(%s.1), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c1 = bf16[8,128]{1,0} custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (s: bf16[2,128]) -> bf16[8,128] {
  %s.2 = bf16[2,128]{1,0} parameter(0)
  ROOT %gather.2 = bf16[8,128]{1,0} all-gather(%s.2), replica_groups={{0,1,2,3}}, dimensions={0}
}

%fused_done (s: bf16[2,128]) -> bf16[8,128] {
  %s.3 = bf16[2,128]{1,0} parameter(0)
  %gather.3 = bf16[8,128]{1,0} all-gather(%s.3), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c3 = bf16[8,128]{1,0} custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (s: f32[8,128]) -> f32[2,128] {
  %s.4 = f32[8,128]{1,0} parameter(0)
  %whole = f32[8,128]{1,0} all-reduce(%s.4), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[2,128]{1,0} dynamic-slice(%whole)
}

ENTRY %main (a: f32[8,128], s: bf16[2,128], all: f32[3,8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %s = bf16[2,128]{1,0} parameter(1)
  %t0 = (f32[8,128]{1,0}) tuple(%a)
  %loop = (f32[8,128]) while(%t0), condition=%region_2, body=%region_1, backend_config={"known_trip_count":{"n":"5"}}
  %all.2 = f32[3,8,128]{2,1,0} parameter(2)
  %first = s32[]{:S(6)} constant(1)
  %first.1 = s32[]{:S(6)} copy(%first)
  %t1 = (s32[]{:S(6)}, f32[3,8,128]{2,1,0}) tuple(%first.1, %all.2)
  %counted = (s32[]{:S(6)}, f32[3,8,128]{2,1,0}) while(%t1), condition=%region_4, body=%region_3
  %g1 = bf16[8,128]{1,0} fusion(%s), kind=kCustom, calls=%fused_start
  %g2 = bf16[8,128]{1,0} fusion(%s), kind=kCustom, calls=%async_collective_fusion.1
  %g3 = bf16[8,128]{1,0} fusion(%s), kind=kCustom, calls=%fused_done
  %rs = f32[2,128]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %rs2 = f32[2,128]{1,0} reduce-scatter(%a), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  %rs3 = f32[2,128]{1,0} reduce-scatter(%a), replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}, to_apply=%add
  %a2a = f32[8,128]{1,0} all-to-all(%a), replica_groups={{0,1,2,3}}, metadata={op_name="jit(f)/optimizer/stack"}
  %cut = ((f32[8,128]{1,0}), f32[2,128]{1,0:S(1)}, u32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:128]}
  ROOT %fast = f32[8,128]{1,0:S(1)} copy(%a)
}
"""


def test_collectives_are_counted_as_often_as_they_run_and_an_all_gather_in_several_fusions_once():
    whole, half = 8 * 128 * 4, 8 * 128 * 2
    assert {exchange.kind: exchange for exchange in hlo.collectives(PROGRAM)} == {
        "all-reduce": Collective("all-reduce", 5 * whole, whole, 5),
        "all-gather": Collective("all-gather", half, half, 1),
        "reduce-scatter": Collective("reduce-scatter", 3 * whole, whole, 3),
        "all-to-all": Collective("all-to-all", whole, whole, 1),
    }
    assert hlo.collectives(PROGRAM, "/optimizer/") == [Collective("all-to-all", whole, whole, 1)]


def test_a_loop_of_unknown_length_is_an_error_and_not_counted_once():
    with pytest.raises(RunError, match="how often the loop loop of the compiled"):
        hlo.collectives(PROGRAM.replace('"known_trip_count"', '"unknown"'))
    with pytest.raises(RunError, match="how often the loop counted of the compiled"):
        hlo.memory_bytes(PROGRAM.replace("direction=LT", "direction=NE"))


def test_memory_traffic_leaves_out_fast_memory_and_repeats_a_loop():
    whole, half, part, small = 8 * 128 * 4, 8 * 128 * 2, 2 * 128 * 4, 2 * 128 * 2
    loop = 5 * 2 * whole
    stack = 3 * (2 * whole + 2 * whole)  # a slice read and written, then read and written into its place
    gathers, scatters, exchange, copies = 3 * (half + small), 3 * (whole + part), 2 * whole, part + whole
    assert hlo.memory_bytes(PROGRAM) == loop + stack + gathers + scatters + exchange + copies


def test_the_chip_with_the_longest_matching_name_is_chosen():
    v5e, v5p = chip_of("TPU v5 lite"), chip_of("TPU v5")
    assert v5e is not None
    assert v5p is not None
    assert (v5e.flops, v5p.flops) == (197e12, 459e12)
    assert chip_of("abacus") is None


def test_the_roofline_is_the_longest_of_three_bounds():
    chip = chip_of("TPU v5 lite")
    assert chip is not None
    gather = Collective("all-gather", int(180e9), 1, 1)
    assert torus_seconds(chip, (4, 4), gather) == pytest.approx(1.0)
    assert torus_seconds(chip, (16,), gather) == pytest.approx(2.0)
    assert torus_seconds(chip, (4, 4), gather._replace(kind="all-reduce")) == pytest.approx(2.0)
    bound = roofline(chip, (4, 4), flops=197e12, memory_bytes=2 * 819e9, exchanges=[gather])
    assert bound == pytest.approx((1.0, 2.0, 1.0))
    assert (bound.bound_by, bound.efficiency) == ("memory", pytest.approx(0.5))


def test_without_libtpu_or_with_an_unknown_topology_one_line_says_what_to_do():
    command = [sys.executable, "-m", "jax_impl.aot", "--topology", "v9z:1x1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    has_libtpu = importlib.util.find_spec("libtpu") is not None
    says = "cannot compile for v9z:1x1" if has_libtpu else "run pip install -e '.[tpu-aot]' in"
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_kernel_for_tpus_takes_the_place_of_attention_only_where_it_applies(monkeypatch):
    assert parallel.attention() is blockwise_attention
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert parallel.attention() is splash_attention
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.standard_normal((1, 16, 2, 8)), jnp.float32) for _ in range(3))
    assert jnp.array_equal(splash_attention(q, k, v), blockwise_attention(q, k, v))  # too short for its tiles


@pytest.mark.slow
def test_the_kernel_for_tpus_computes_attention():
    random = np.random.default_rng(0)
    q = jnp.asarray(random.standard_normal((1, 256, 2, 128)), jnp.float32)
    k, v = (jnp.asarray(random.standard_normal((1, 256, 1, 128)), jnp.float32) for _ in range(2))
    with pltpu.force_tpu_interpret_mode():
        found, pull_back = jax.vjp(splash_attention, q, k, v)
        gradients = pull_back(jnp.ones_like(found))
    expected, expected_pull_back = jax.vjp(causal_attention, q, k, v)
    assert jnp.linalg.norm(found - expected) <= 1e-5 * jnp.linalg.norm(expected)
    for gradient, truth in zip(gradients, expected_pull_back(jnp.ones_like(expected)), strict=True):
        assert jnp.linalg.norm(gradient - truth) <= 1e-5 * jnp.linalg.norm(truth)


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu-aot")
def test_fsdp_on_sixteen_chips_never_reduces_whole_gradients(tmp_path):
    command = [sys.executable, "-m", "jax_impl.aot", "--topology=v5e:4x4", "--depth=2", "--batch-per-chip=1"]
    command += ["--sequence-len=256", "--vocab-size=4096", f"--json={tmp_path / 'aot.json'}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "aot.json").read_text())
    assert found["fits"]
    state = 2 * 4 * 2 * 4096 * 128 + 4 * 2 * 12 * 128 * 128  # AdamW's moments of two tables, Muon's momentum
    assert found["optimizer_state_bytes"] == pytest.approx(state / 16, rel=0.01)
    reduced = [exchange["largest"] for exchange in found["collectives"] if exchange["kind"] == "all-reduce"]
    assert max(reduced, default=0) < found["parameters"] * 4 / 10
