"""What is counted in a program that is compiled for a GPU; the compilation itself needs JAX's CUDA plugin."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jax_impl import parallel
from jax_impl.aot import hlo, kernels
from jax_impl.aot.absent_cudnn import assumed_cudnn
from jax_impl.aot.gpus import GPUS, target_config
from jax_impl.aot.hlo import Collective
from jax_impl.aot.kernels import Buffer, Product
from jax_impl.aot.roofline import roofline, switch_seconds
from jax_impl.aot.topologies import absent_devices
from jax_impl.models.cudnn import cudnn_attention
from tests.helpers.trajectories import environment
from twinstep.chips import chip_of
from twinstep.errors import UserError

# B 2, T 16, H 4, V 48, L 3: a loop of three trips with one of each kind of kernel, and around it one of each kind of
# array and exchange that is counted.
PROGRAM = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%gemm_computation (p: bf16[32,64], q: bf16[64,64]) -> bf16[32,64] {
  %p = bf16[32,64]{1,0} parameter(0)
  %q = bf16[64,64]{1,0} parameter(1)
  ROOT %fusion.1 = bf16[32,64]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_dot (p.1: bf16[64], q.1: bf16[64]) -> f32[] {
  %p.1 = bf16[64]{0} parameter(0)
  %q.1 = bf16[64]{0} parameter(1)
  ROOT %small = f32[] dot(%p.1, %q.1), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

%fused_add (p.2: bf16[32,64]) -> bf16[32,64] {
  %p.2 = bf16[32,64]{1,0} parameter(0)
  ROOT %twice = bf16[32,64]{1,0} add(%p.2, %p.2)
}

%fused_compare (n: s32[]) -> pred[] {
  %n = s32[] parameter(0)
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%n, %three), direction=LT
}

%body (t: (s32[], bf16[32,64], bf16[64,64])) -> (s32[], bf16[32,64], bf16[64,64]) {
  %t = (s32[], bf16[32,64]{1,0}, bf16[64,64]{1,0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%t), index=0
  %x = bf16[32,64]{1,0} get-tuple-element(%t), index=1
  %w = bf16[64,64]{1,0} get-tuple-element(%t), index=2
  %gemm_fusion_dot.1 = bf16[32,64]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm_computation, metadata={op_name="jit(train)/jvp()/dot_general"}, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %fmha = (bf16[2,16,4,32]{3,1,2,0}, f32[2,4,16]{2,1,0}, u8[0]{0}) custom-call(%gemm_fusion_dot.1), custom_call_target="__cudnn$fmhaSoftmax"
  %y = bf16[2,16,4,32]{3,1,2,0} get-tuple-element(%fmha), index=0
  %flat = bf16[32,64]{1,0} bitcast(%y)
  %loop_add_fusion = bf16[32,64]{1,0} fusion(%flat), kind=kLoop, calls=%fused_add
  %next = s32[] copy(%n.1)
  ROOT %t.1 = (s32[], bf16[32,64]{1,0}, bf16[64,64]{1,0}) tuple(%next, %loop_add_fusion, %w)
}

%condition (t.2: (s32[], bf16[32,64], bf16[64,64])) -> pred[] {
  %t.2 = (s32[], bf16[32,64]{1,0}, bf16[64,64]{1,0}) parameter(0)
  %n.2 = s32[] get-tuple-element(%t.2), index=0
  ROOT %more = pred[] fusion(%n.2), kind=kLoop, calls=%fused_compare
}

ENTRY %main (shard: bf16[8,64], x.1: bf16[32,64], v: bf16[64], table: f32[64,64]) -> bf16[32,64] {
  %shard = bf16[8,64]{1,0} parameter(0)
  %x.1 = bf16[32,64]{1,0} parameter(1)
  %v = bf16[64]{0} parameter(2)
  %table = f32[64,64]{1,0} parameter(3)
  %all-gather-start = (bf16[8,64]{1,0}, bf16[64,64]{1,0}) all-gather-start(%shard), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %all-gather-done = bf16[64,64]{1,0} all-gather-done(%all-gather-start)
  %zero = s32[] constant(0)
  %t0 = (s32[], bf16[32,64]{1,0}, bf16[64,64]{1,0}) tuple(%zero, %x.1, %all-gather-done)
  %loop = (s32[], bf16[32,64]{1,0}, bf16[64,64]{1,0}) while(%t0), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %x.2 = bf16[32,64]{1,0} get-tuple-element(%loop), index=1
  %cublas = (bf16[64,64]{1,0}, s8[4194304]{0}) custom-call(%table, %table), custom_call_target="__cublas$gemm", metadata={op_name="jit(train)/optimizer/dot_general"}
  %scores = (bf16[8,16,16]{2,1,0}, f32[128,16]{1,0}) fusion(%x.2), kind=kLoop, calls=%fused_add
  %logits = f32[32,48]{1,0} fusion(%x.2, %x.2), kind=kCustom, calls=%gemm_computation, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %chunk = f32[8,48]{1,0} fusion(%x.2), kind=kLoop, calls=%fused_add
  %kept = bf16[3,8,16,16]{3,2,1,0} broadcast(%v)
  %activations = bf16[4,16,4,8]{3,2,1,0} copy(%x.2)
  %dot = f32[] fusion(%v, %v), kind=kInput, calls=%fused_dot
  %scatter = ((f32[64,64]{1,0}, f32[16]{0}), (f32[8,64]{1,0}, f32[2]{0})) reduce-scatter-start(%x.2, %v), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, to_apply=%add
  %scattered = (f32[8,64]{1,0}, f32[2]{0}) reduce-scatter-done(%scatter)
  %reduce = f32[32]{0} all-reduce-start(%v), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %reduced = f32[32]{0} all-reduce-done(%reduce)
  ROOT %result = bf16[32,64]{1,0} bitcast(%x.2)
}
"""  # noqa: E501


def test_kernels_are_counted_as_often_as_they_run_and_those_of_a_loops_condition_not_at_all():
    assert kernels.kernels(PROGRAM) == {
        "products": 3 + 3,  # in the loop; cuBLAS, the logits, one in a fusion
        "fusions": 3 + 2,
        "copies": 3 + 1,
        "attention": 3,
        "collectives": 3,
        "other": 1,
    }


def test_products_are_counted_by_who_computes_them_and_from_what():
    assert kernels.products(PROGRAM) == [
        Product("Triton fusion", "bf16", 4, 0),
        Product("cuBLAS (__cublas$gemm)", "f32", 1, 1),
        Product("other", "bf16", 1, 0),
    ]


def test_attention_scores_and_all_logits_are_found_in_any_order_of_their_dimensions_and_nothing_else():
    scores = "T x T per head and sequence, attention scores"
    assert kernels.large_buffers(PROGRAM, B=2, T=16, H=4, V=48, L=3) == [
        Buffer(scores, "bf16[3,8,16,16]", 3 * 8 * 16 * 16 * 2, 1),
        Buffer(scores, "f32[128,16]", 128 * 16 * 4, 1),
        Buffer("B x T x V, all logits", "f32[32,48]", 32 * 48 * 4, 1),
        Buffer(scores, "bf16[8,16,16]", 8 * 16 * 16 * 2, 1),
    ]


def test_the_asynchronous_exchanges_of_a_gpu_are_counted_by_their_whole_arrays():
    whole = 64 * 64 * 4 + 16 * 4
    assert {exchange.kind: exchange for exchange in hlo.collectives(PROGRAM)} == {
        "reduce-scatter": Collective("reduce-scatter", whole, whole, 1),
        "all-gather": Collective("all-gather", 64 * 64 * 2, 64 * 64 * 2, 1),
        "all-reduce": Collective("all-reduce", 32 * 4, 32 * 4, 1),
    }


def test_gpus_exchange_over_nvlink_and_between_hosts_over_their_adapters():
    chip = chip_of("NVIDIA H100 80GB HBM3")
    assert chip is not None
    gather = Collective("all-gather", int(450e9), 1, 1)
    assert switch_seconds(chip, (1, 8), gather) == pytest.approx(7 / 8)
    assert switch_seconds(chip, (2, 8), gather) == pytest.approx(
        7 / 8
    )  # the adapters of a host take 450 / 2 / (8 x 50)
    assert switch_seconds(chip, (16, 8), gather) == pytest.approx(450 * 15 / 16 / (8 * 50))
    assert switch_seconds(chip, (1, 8), gather._replace(kind="all-reduce")) == pytest.approx(2 * 7 / 8)
    assert switch_seconds(chip, (2, 8), gather._replace(kind="all-to-all")) == pytest.approx(450 / 2 / 50)
    assert switch_seconds(chip, (1, 8), gather._replace(kind="collective-permute")) == pytest.approx(1)
    assert roofline(chip, (1, 8), 989e12, 0, [gather]).network == pytest.approx(7 / 8)
    assert roofline(chip, (1, 1), 989e12, 0, [gather]).network == 0


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_what_xla_is_told_of_a_gpu_is_what_its_data_sheet_says(gpu):
    chip = chip_of(gpu.device_kind)
    assert chip is not None
    assert chip.bandwidth == pytest.approx(gpu.bandwidth, rel=0.005)
    assert chip.memory < gpu.memory < 1.08 * chip.memory  # GB and GiB
    assert f"core_count: {gpu.cores}\n" in target_config(gpu)


def test_attention_is_lowered_to_cudnns_kernel_without_a_gpu_only_where_its_presence_is_assumed():
    assert parallel.attention("gpu") is cudnn_attention
    x_BTHC = jax.ShapeDtypeStruct((1, 64, 2, 64), jnp.bfloat16)
    lower = lambda: (
        jax.jit(lambda *x: cudnn_attention(*x)).trace(x_BTHC, x_BTHC, x_BTHC).lower(lowering_platforms=("cuda",))
    )
    with assumed_cudnn():
        assert "__cudnn$fmhaSoftmax" in lower().as_text()
    assert "__cudnn" not in lower().as_text()


def test_an_unknown_card_is_one_line():
    command = [sys.executable, "-m", "jax_impl.aot", "--topology", "abacus:1x1x8"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: no chip 'abacus' is known of --topology abacus:1x1x8; pass a TPU as v5e:4x4, or a GPU"
    )


@pytest.mark.parametrize("shape", ["8", "1x8", "1x0x8", "1x1x8x1", "one"])
def test_a_malformed_topology_says_what_the_numbers_are(shape):
    with pytest.raises(UserError, match="pass NVLink domains x hosts of each x GPUs of a host: h100:1x1x8 is one host"):
        absent_devices(f"h100:{shape}")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the extra gpu-aot")
def test_the_step_is_compiled_for_eight_gpus_that_are_not_here(tmp_path):
    command = [sys.executable, "-m", "jax_impl.aot", "--topology=h100:1x1x8", "--depth=2", "--batch-per-chip=1"]
    command += ["--sequence-len=256", "--vocab-size=4096", f"--json={tmp_path / 'aot.json'}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "never run" in done.stdout
    found = json.loads((tmp_path / "aot.json").read_text())
    assert found["fits"]
    state = 2 * 4 * 2 * 4096 * 128 + 4 * 2 * 12 * 128 * 128  # AdamW's moments of two tables, Muon's momentum
    assert found["optimizer_state_bytes"] == pytest.approx(state / 8, rel=0.01)
    exchanged = {exchange["kind"]: exchange for exchange in found["collectives"]}
    matrices, tables = 2 * 12 * 128 * 128, 2 * 4096 * 128
    assert exchanged["reduce-scatter"]["bytes"] == 4 * (matrices + tables)
    assert exchanged["all-reduce"]["largest"] < 1000
    assert found["kernels"]["attention"] == 2 * 3  # forward, again for the backward pass, backward
    assert found["kernels"]["products"] == sum(product["times"] for product in found["products"])
    assert {product["operands"] for product in found["products"]} == {"bf16"}
    assert sum(product["optimizer"] for product in found["products"]) == 45
    # So few logits are computed at once.
    assert {buffer["what"] for buffer in found["large_buffers"]} == {"B x T x V, all logits"}
