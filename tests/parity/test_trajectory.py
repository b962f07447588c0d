"""Envelopes, and what a free run may differ by."""

import numpy as np
import pytest

from parity.budget import EPS, TRAJECTORY_LOSS, relative
from parity.entries import Key
from parity.envelope import FLOOR_ULPS, enter_weights, loss_envelope, within
from parity.ledger import Ledger
from parity.reference import Reference, Run, perturb
from parity.side import TrainingState
from parity.trajectory import compare_runs

WEIGHTS = np.linspace(1.0, 2.0, 2000)  # enough for a verdict of their own


def a_reference(losses, moved_losses, moved_weights) -> Reference:
    """Of a run of which only the losses, and the weights after its last step, are known."""
    last = len(losses) - 1
    moved = [Run(list(other), {last: {"w": moved_weights}}) for other in moved_losses]
    fields = dict.fromkeys(Reference._fields)
    return Reference(**{**fields, "run": Run(list(losses), {last: {"w": WEIGHTS}}), "moved_runs": moved})


def judged(dtype, losses, moved_losses, port_losses, moved_weights=WEIGHTS, port_weights=WEIGHTS):
    ledger = Ledger(dtype)
    reference = a_reference(losses, moved_losses, moved_weights)
    port = Run(list(port_losses), {len(losses) - 1: {"w": port_weights}})
    curve = compare_runs(ledger, "nonzero", reference, port, {})
    return ledger.judge()[2], curve


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_element_of_a_parameter_moves_by_one_ulp_and_nothing_else_does(dtype):
    weights = {"w": np.linspace(1, 3, 1000).astype(dtype), "running_mean": np.ones(4, dtype)}
    state = TrainingState(weights, {"momentum/w": np.ones(3)}, 5)
    moved = perturb(state, EPS[dtype], 0, ["w"])
    steps = (moved.weights["w"].astype(np.float64) / weights["w"] - 1) / EPS[dtype]
    assert moved.weights["w"].dtype == dtype
    assert (moved.weights["w"] != weights["w"]).all()
    assert np.abs(steps).max() <= 1.5
    assert 0.4 < (steps > 0).mean() < 0.6
    assert moved.weights["running_mean"] is weights["running_mean"]
    assert (moved.moments, moved.step) == (state.moments, 5)


def test_perturbations_are_repeated_by_their_seed_and_differ_between_seeds():
    state = TrainingState({"w": np.ones(100)}, {}, 0)
    first, again, other = (perturb(state, EPS["float64"], seed, ["w"]).weights["w"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_the_envelope_is_the_largest_deviation_of_any_run_so_far():
    assert loss_envelope([2.0, 2.0, 2.0], [[2.0, 2.2, 2.0], [2.1, 2.0, 1.9]]) == pytest.approx([0.05, 0.1, 0.1])


def test_ten_times_the_envelope_is_allowed_but_never_more_than_the_ceiling_nor_less_than_rounding():
    assert within(1e-14, EPS["float64"], None).value == pytest.approx(1e-13)
    assert within(0.0, EPS["float64"], None).value == 10 * FLOOR_ULPS * EPS["float64"]
    assert within(1e-9, EPS["float64"], TRAJECTORY_LOSS).value == 1e-11


def test_equal_arrays_differ_by_nothing_and_what_should_be_zero_by_infinity():
    assert relative(np.zeros(2), np.zeros(2)) == 0
    assert relative(np.zeros(2), np.ones(2)) == float("inf")
    assert relative(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.1)


@pytest.mark.parametrize(("dtype", "envelope"), [("float64", 1e-13), ("float32", 1e-5)])
def test_a_loss_within_ten_times_the_envelope_agrees_and_one_beyond_it_diverges(dtype, envelope):
    losses, moved = [2.0, 2.0, 2.0], [[2.0, 2 + 2 * envelope, 2.0]]
    first, curve = judged(dtype, losses, moved, [2.0, 2.0, 2 + 18 * envelope])
    assert first is None
    assert curve.envelope == pytest.approx([0, envelope, envelope], rel=1e-2)
    assert curve.free_error[2] == pytest.approx(9 * envelope, rel=1e-2)
    first, _ = judged(dtype, losses, moved, [2.0, 2.0, 2 + 22 * envelope])
    assert (first.stage, first.tensor, first.step) == ("trajectory", "loss", 2)
    assert first.budget == pytest.approx(10 * envelope, rel=1e-2)


def test_a_float64_loss_may_never_be_off_by_more_than_the_fixed_figure():
    first, _ = judged("float64", [2.0, 2.0], [[2.0, 2.1]], [2.0, 2 * (1 + 2e-11)])
    assert (first.stage, first.tensor, first.step, first.budget) == ("trajectory", "loss", 1, 1e-11)


@pytest.mark.parametrize(("off", "status"), [(9e-9, "unchecked"), (1.2e-8, "diverges"), (0.9e-10, "agrees")])
def test_weights_that_the_reference_cannot_repeat_are_unchecked_within_ten_envelopes_and_no_further(off, status):
    ledger = Ledger("float64")
    moved = (1 + 1e-9) * WEIGHTS
    enter_weights(ledger, Key("trajectory", "w", "nonzero"), 0, WEIGHTS, (1 + off) * WEIGHTS, [moved])
    (tensor,) = ledger.judge()[1]
    assert tensor.status == [status]


@pytest.mark.parametrize(("dtype", "moved", "allowed"), [("float64", 1.0, 1e-10), ("float32", 1 + 1e-6, 1e-5)])
def test_weights_after_a_free_run_have_a_fixed_figure_in_float64_and_the_envelope_elsewhere(dtype, moved, allowed):
    losses, others = [2.0], [[2.0 + 1e-6]]
    runs = [judged(dtype, losses, others, losses, moved * WEIGHTS, (1 + f * allowed) * WEIGHTS)[0] for f in (0.9, 1.2)]
    assert runs[0] is None
    assert (runs[1].stage, runs[1].tensor, runs[1].step) == ("trajectory", "w", 0)
    assert runs[1].budget == pytest.approx(allowed, rel=1e-3)
