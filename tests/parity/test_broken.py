"""A port that raises, or returns what cannot be compared, ends as a result: what was judged, what was not, and why."""

import json
import re
from contextlib import nullcontext
from itertools import chain, islice, repeat
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from jax_impl import checkpoint, evaluate, input, optimizer
from jax_impl.head_loss import batch_loss
from jax_impl.models import make_model
from jax_impl.models.attention import causal_attention
from jax_impl.models.blockwise import blockwise_attention
from jax_impl.muon import orthogonalize
from jax_impl.schedule import lr_multiplier
from jax_impl.step import micro_step
from parity import check as checks
from parity.broken import PortError, described, of_port
from parity.check import check, check_here
from parity.check_configs import subject
from parity.faults.fault import swapped
from parity.reference import make_reference
from parity.report import write_report
from parity.request import Request
from parity.result import STAGES, Result
from tests.parity.test_check import tiny_gpt
from torch_ref import step as torch_step
from twinstep.errors import UserError

CONFIG = subject("linear", "float64", 3, 0)


@pytest.fixture(scope="module")
def reference_of():
    kept = {}

    def kept_reference(config, data, init, first):
        if init not in kept:
            kept[init] = make_reference(config, data, init, first)
        return kept[init]

    return kept_reference


def raising(*args, **kwargs):
    raise TypeError("two strings cannot be multiplied")


def checked(reference_of, around) -> Result:
    return check_here(Request(CONFIG, inits=("nonzero",)), reference_of, around)


BREAKS = {
    "the loss": (batch_loss, "activations", "forward and backward pass", 0),
    "the micro-step": (micro_step, "loss", "training step", 0),
    "the schedule": (lr_multiplier, "schedule", "curves", 0),
    "Muon": (orthogonalize, "loss", "training step", 0),
    "the evaluation": (evaluate.evaluate, "evaluation", "evaluation", 3),
    "the checkpoint": (checkpoint.restore, "trajectory", "run", 0),
    "the model": (make_model, "weights", "model", 0),
}


@pytest.mark.parametrize("what", BREAKS)
def test_whatever_raises_the_first_stage_that_could_not_be_judged_is_named_with_the_reason(
    what, reference_of, tmp_path
):
    function, stage, tensor, step = BREAKS[what]
    around = nullcontext
    if what == "the checkpoint":
        around = lambda: mock.patch.object(checkpoint, "restore", raising)
    elif what == "the evaluation":
        around = lambda: mock.patch.object(evaluate, "evaluate", raising)
    else:
        around = lambda: swapped(function, raising)
    result = checked(reference_of, around)
    first = result.first_divergence
    assert result.verdict == "diverges"
    assert (first.stage, first.tensor, first.step) == (stage, tensor, step)
    assert re.fullmatch(
        r"TypeError: two strings cannot be multiplied \(.*tests/parity/test_broken\.py:\d+, in raising\)", first.note
    )
    assert first.note in result.sentence
    if what in ("the schedule", "Muon", "the checkpoint"):
        assert result.stages["evaluation"].verdict == "agrees"
    before = STAGES[: STAGES.index(stage)] if what not in ("the model", "the schedule") else ()
    assert all(result.stages[name].verdict == "agrees" for name in before if name != "update")
    written = write_report(result, tmp_path)
    assert "two strings cannot be multiplied" in (tmp_path / "report.html").read_text()
    assert json.loads(written[0].read_text())["first_divergence"]["note"] == first.note


@pytest.mark.parametrize(
    ("change", "note"), [(-1, "2 batches in JAX"), (1, "4 or more batches in JAX"), (None, "4 or")]
)
def test_a_batch_too_few_too_many_or_no_end_of_them_is_a_divergence_of_the_data(change, note, reference_of):
    own = input.train_batches

    def other(source, start, stop, *rest):
        batches = list(own(source, start, stop, *rest))
        if change is None:
            return chain(batches, repeat(batches[-1]))
        return islice(chain(batches, batches[-1:]), len(batches) + change)

    result = checked(reference_of, lambda: mock.patch.object(input, "train_batches", other))
    first = result.first_divergence
    assert (first.stage, first.tensor) == ("data", "batches")
    assert first.note == f"{first.note.partition(' batches')[0]} batches in JAX, 3 in torch"
    assert first.note.startswith(note)
    assert result.stages["update"].verdict == "agrees"
    assert result.stages["evaluation"].verdict == "agrees"
    wrong = [t for t in result.tensors if t.stage == "trajectory" and "diverges" in t.status]
    assert [t.tensor for t in wrong] == ["batches"]


def no_gradient(*args):
    sums, buffers, _ = micro_step(*args)
    return sums, buffers, None


def scalar_loss(*args):
    sums = batch_loss(*args)
    return sums._replace(nats=sums.nats * jnp.ones(2))


@pytest.mark.parametrize(
    ("old", "new", "stage"),
    [
        (micro_step, lambda *args: None, "loss"),
        (micro_step, no_gradient, "loss"),
        (batch_loss, scalar_loss, "activations"),
        (input.train_batches, lambda *args: None, "data"),
        (input.train_batches, lambda *args: [{"inputs": "a text", "targets": None}] * 3, "data"),
        (evaluate.metrics, lambda sums: {"val_loss": None}, "evaluation"),
        (evaluate.metrics, lambda sums: {"val_loss": np.ones(3), "val_accuracy": "good"}, "evaluation"),
    ],
)
def test_what_cannot_be_compared_is_a_divergence_where_it_is_returned(old, new, stage, reference_of):
    home = {input.train_batches: input, evaluate.metrics: evaluate}.get(old)
    around = (lambda: mock.patch.object(home, old.__name__, new)) if home else (lambda: swapped(old, new))
    result = checked(reference_of, around)
    assert result.verdict == "diverges"
    assert result.first_divergence.stage == stage
    assert result.first_divergence.note


def strict(q_BTHC, k_BSKC, v_BSKC):
    """No query sees its own key: the first sees none."""
    seen = causal_attention(q_BTHC, jnp.roll(k_BSKC, 1, 1), jnp.roll(v_BSKC, 1, 1))
    return seen.at[:, 0].set(jnp.nan)


@pytest.mark.slow
def test_a_mask_that_leaves_the_first_query_nothing_is_found_as_a_nan_with_its_place():
    result = check_here(Request(tiny_gpt(3)), around=lambda: swapped(blockwise_attention, strict))
    first = result.first_divergence
    assert (first.stage, first.tensor, first.step) == ("activations", "h.0.attn.y", 0)
    assert re.fullmatch(r"nan in JAX, \S+ in torch at \[0, 0, 0\], the first of [\d,]+ places of [\d,]+", first.note)
    assert result.stages["trajectory"].verdict == "diverges"
    assert result.stages["evaluation"].verdict == "diverges"
    assert not any("shape" in t.note for t in result.tensors)
    (ended,) = [t for t in result.tensors if (t.stage, t.tensor, t.init) == ("trajectory", "run", "nonzero")]
    assert "is not finite, so it is not saved" in ended.note


def test_a_user_error_of_the_configuration_and_every_error_of_the_reference_stay_errors(reference_of):
    def refusing(*args, **kwargs):
        raise UserError("--parallel pmap needs another device")

    with pytest.raises(UserError, match="another device"):
        checked(reference_of, lambda: swapped(make_model, refusing))
    with pytest.raises(TypeError, match="two strings"):
        checked(raising, nullcontext)


def test_what_the_reference_raises_amid_the_comparison_is_not_the_ports(monkeypatch):
    monkeypatch.setattr(torch_step, "loss_sums", None)
    with pytest.raises(TypeError), of_port():
        torch_step.micro_step(lambda x: x, {"inputs": 0, "targets": 0}, 1)
    with pytest.raises(PortError, match=r"IndexError: .*test_broken\.py:\d+, in test_what_the_ref"), of_port():
        [].pop()


def test_memory_that_runs_out_is_no_fault_of_the_port(reference_of):
    def out_of_memory(*args, **kwargs):
        raise MemoryError("4 GB")

    with pytest.raises(MemoryError):
        checked(reference_of, lambda: swapped(optimizer.lr_multiplier, out_of_memory))


def test_the_reason_is_one_line_with_the_innermost_line_of_the_port():
    try:
        np.linalg.inv(np.zeros((2, 3)))
    except np.linalg.LinAlgError as error:
        said = described(error)
    assert re.fullmatch(r"LinAlgError: .*square \(.*test_broken\.py:\d+, in test_the_reason.*\)", said)
    assert described(UserError("pass another --seed")) == "pass another --seed"
    assert described(KeyError("a\nb")).count("\n") == 0
    assert described(ValueError()) == "ValueError"


PATCH = """
import jax_impl.losses

def broken(*args, **kwargs):
    raise TypeError("two strings cannot be multiplied")

jax_impl.losses.loss_sums = broken
"""


@pytest.mark.slow
def test_a_check_in_a_child_process_hands_on_what_broke(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(PATCH)
    root = str(checks.__file__).removesuffix("/parity/check.py")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    first = check(Request(subject("linear", "float32", 3, 0), seeds=2)).first_divergence
    assert (first.stage, first.tensor) == ("activations", "forward and backward pass")
    assert "two strings cannot be multiplied" in first.note
