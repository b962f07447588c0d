"""The check on our own models: right as they are, wrong where something small is changed by hand."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jax_impl import step
from parity.check import check, check_here
from parity.check_configs import subject, with_flags
from parity.envelope import watched_steps
from parity.faults.fault import swapped
from parity.faults.rewritten_models import scanned
from parity.faults.rewritten_optimizers import muon_that_keeps
from parity.reference import make_reference
from parity.request import Request
from parity.result import STAGES, Result
from twinstep.config import Config, CorpusConfig, GPTConfig
from twinstep.errors import UserError


def tiny_gpt(steps: int = 3, **model) -> Config:
    """Still grouped, not square and masked."""
    config = subject("gpt", "float64", steps, 0)
    sizes = GPTConfig(**{"depth": 1, "d_model": 32, "head_dim": 8, "kv_heads": 2, "vocab_size": 256, **model})
    return replace(config, model=sizes, data=CorpusConfig(sequence_len=12, masked_targets=0.2))


@pytest.fixture(scope="module")
def of_linear() -> Result:
    return check_here(Request(subject("linear", "float64", 3, 0)))


@pytest.mark.parametrize("model", ["linear", "mlp", "embedding"])
def test_the_small_models_agree_at_every_stage(model, of_linear):
    result = of_linear if model == "linear" else check_here(Request(subject(model, "float64", 3, 0)))
    assert result.verdict == "agrees", result.sentence
    assert list(result.stages) == list(STAGES)
    generation = result.stages.pop("generation")
    assert (generation.verdict, generation.compared) == ("unchecked", 0)
    assert all(stage.verdict == "agrees" and stage.compared for stage in result.stages.values())


@pytest.mark.slow
def test_a_tiny_gpt_agrees_and_what_its_native_start_hides_is_unchecked():
    result = check_here(Request(tiny_gpt(4)))
    assert result.verdict == "agrees", result.sentence
    status = {
        (t.init, t.tensor): dict(zip(t.steps, t.status, strict=True)) for t in result.tensors if t.stage == "gradients"
    }
    name = "h.0.attn.c_q.weight"
    assert set(status["nonzero", name].values()) == {"agrees"}
    assert status["native", name] == {0: "unchecked", 1: "unchecked", 2: "agrees", 3: "agrees"}
    assert result.stages["gradients"].relative_l2 <= 1e-11
    for curve in result.curves:
        assert all(error <= budget for error, budget in zip(curve.free_error, curve.free_budget, strict=True))
        assert max(curve.free_budget) <= 1e-11


def test_a_check_is_repeated_to_the_bit_and_a_reference_serves_several_ports(of_linear):
    kept = {}

    def reference_of(config, data, init, first):
        if init not in kept:
            kept[init] = make_reference(config, data, init, first)
        return kept[init]

    request = Request(subject("linear", "float64", 3, 0))
    for _ in range(2):
        again = check_here(request, reference_of)
        assert again.tensors == of_linear.tensors
        assert again.curves == of_linear.curves


def test_an_error_of_one_part_in_a_billion_in_a_gradient_is_seen_there_and_nowhere_before():
    micro_step = step.micro_step

    def faulty(*args):
        sums, buffers, grads = micro_step(*args)
        return sums, buffers, jax.tree.map(lambda g: g * (1 + 1e-9), grads)

    result = check_here(Request(subject("linear", "float64", 3, 0)), around=lambda: swapped(micro_step, faulty))
    assert result.first_divergence is not None
    assert result.first_divergence.stage == "gradients"
    assert result.first_divergence.relative_l2 == pytest.approx(1e-9, rel=1e-3)
    for stage in ("data", "weights", "schedule", "activations", "loss", "update", "parameters"):
        assert result.stages[stage].verdict == "agrees", stage


def test_dropout_by_key_agrees_micro_step_by_micro_step():
    config = with_flags(subject("mlp", steps=3), ["--no-shared-dropout"])
    result = check_here(Request(config, inits=("nonzero",), nudge=False))
    assert result.verdict == "agrees", result.sentence
    assert {"dropout", "dropout [1]"} <= {t.tensor for t in result.tensors if t.stage == "activations"}


def test_a_decay_below_the_tolerance_and_a_clip_that_never_acts_are_unchecked():
    config = subject("linear", "float64", 3, 0)
    config = replace(config, optimizer=replace(config.optimizer, matrix_weight_decay=1e-12, clip_norm=1e6))
    result = check_here(Request(config))
    idle = [t for t in result.tensors if t.tensor == "decay of linear.weight"]
    assert idle
    assert all(set(t.status) == {"unchecked"} for t in idle)
    factor = [t for t in result.tensors if t.tensor == "factor - 1"]
    assert all(set(t.status) == {"unchecked"} for t in factor)


def test_an_optimizers_state_that_cannot_be_told_is_noted_and_its_update_compared_at_the_first_step():
    """Muon's momentum in one vector."""
    in_one = muon_that_keeps(lambda tree: ravel_pytree(tree)[0], lambda kept, like: ravel_pytree(like)[1](kept))
    result = check_here(Request(subject("linear", "float64", 3, 0)), around=in_one)
    assert result.verdict == "agrees", result.sentence
    updates = {t.tensor: t for t in result.tensors if t.stage == "update" and t.init == "nonzero"}
    assert updates["linear.weight"].steps == [0]
    assert set(updates["momentum/linear.weight"].status) == {"unchecked"}
    (unknown,) = (t for name, t in updates.items() if "kept" in name)
    assert set(unknown.status) == {"unchecked"}
    assert "could not be found" in unknown.why_unchecked


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_blocks_in_a_scan_are_matched_layer_by_layer(remat):
    result = check_here(Request(tiny_gpt(3, depth=3)), around=scanned(remat))
    assert result.verdict == "agrees", result.sentence
    assert {f"h.{i}.attn.c_q" for i in range(3)} <= {t.tensor for t in result.tensors}


def test_long_runs_are_watched_at_ten_steps_the_first_three_and_the_last_among_them():
    assert watched_steps(4) == [0, 1, 2, 3]
    steps = watched_steps(200)
    assert len(steps) == 10
    assert steps[:3] == [0, 1, 2]
    assert steps[-1] == 199


def test_every_micro_batch_must_be_divisible_by_the_devices():
    with pytest.raises(UserError, match="= 16 is not divisible by 3 devices; pass a multiple of 6"):
        check(Request(subject("linear", "float64", 3, 0), devices=3))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision_runs_with_64_bit_types_off_and_errs_as_the_reference_does(dtype):
    result = check(Request(subject("mlp", dtype, 3, 0), seeds=8))
    assert result.environment["jax_enable_x64"] == "False"
    assert result.verdict == "agrees", result.sentence
    ratios = [r for t in result.tensors if t.ratio for r in t.ratio if np.isfinite(r)]
    assert max(ratios) <= 4
    assert np.median(ratios) <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize("model", ["linear", "mlp", "embedding"])
def test_two_devices_agree_with_one_process_of_torch(model):
    result = check(Request(subject(model, "float64", 3, 0), devices=2))
    assert result.verdict == "agrees", result.sentence
    assert result.environment["jax devices"].startswith("2 x")
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["devices"] == 2
