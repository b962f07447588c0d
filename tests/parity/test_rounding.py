"""What is seen of a tensor's rounding, though the size of its error is within budget."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from parity.budget import SPREADS, allowed
from parity.entries import Key
from parity.faults.run import choose, inject
from parity.ledger import Ledger
from parity.rounding import fault_of, rounding

TRUTH = np.random.default_rng(0).standard_normal(20_000)
LOW = TRUTH.astype(jnp.bfloat16)


def low(x: np.ndarray) -> np.ndarray:
    return x.astype(jnp.bfloat16)


def seen(reference: np.ndarray, port: np.ndarray, forward: bool = True) -> str:
    found = rounding(reference, port, TRUTH)
    own = math.sqrt(np.mean(np.square(reference.astype(np.float64) - TRUTH)))
    return fault_of(found, own, 0.2, forward)


def verdict(reference: np.ndarray, port: np.ndarray, stage: str = "activations", dtype: str = "bfloat16"):
    ledger = Ledger(dtype, SPREADS[dtype])
    ledger.enter(Key(stage, "x", "nonzero"), 0, reference, port, TRUTH)
    return ledger.judge()


def noisy(seed: int, size: float, around: float = 1.0) -> np.ndarray:
    """The truth times a factor, with an error of a relative size, rounded to bfloat16."""
    return low(TRUTH * (around + size * np.random.default_rng(seed).standard_normal(TRUTH.shape)))


def test_a_port_that_rounds_as_often_agrees_and_one_more_rounding_diverges():
    reference, as_good = noisy(1, 0.004), noisy(2, 0.004)
    assert verdict(reference, as_good)[2] is None
    once_more = low(as_good.astype(np.float32) * (1 + 0.0025 * np.sign(np.sin(np.arange(TRUTH.size)))))
    stages, (tensor,), first = verdict(reference, once_more)
    assert first.stage == "activations"
    assert 1.07 < tensor.ratio[0] < 1.25
    assert stages["activations"].verdict == "diverges"


def test_an_error_below_two_ulp_is_no_longer_within_budget():
    off_by_one = np.where(np.arange(TRUTH.size) % 2, LOW, np.nextafter(LOW, jnp.bfloat16(np.inf)))
    assert verdict(noisy(1, 0.002), off_by_one)[2].relative_l2 < 2 * 2.0**-7


def test_a_ratio_may_be_larger_where_more_of_it_is_luck():
    spread = SPREADS["bfloat16"]
    ratios = [allowed("activations", spread, 10_000, luck).ratio for luck in (0.0, 0.01, 0.1)]
    assert ratios == pytest.approx([1.01, 1.039, 1.273], abs=1e-3)
    assert allowed("activations", spread, 999, 0.0) is None
    assert allowed("activations", spread, 10_000, 0.21) is None
    assert allowed("update", spread, 1_000_000, 0.0) is None
    assert allowed("gradients", SPREADS["float32"], 1000, 0.1).ratio == 4


def test_two_sides_that_round_alike_differ_by_little_luck_and_a_few_large_errors_by_much():
    reference = noisy(1, 0.004)
    nearly = reference.copy()
    nearly[::100] = noisy(2, 0.004)[::100]
    few = reference.astype(np.float64)
    few[:4] += 1
    error = np.sum(np.square(reference.astype(np.float64) - TRUTH))
    luck = [rounding(reference, port, TRUTH).luck(error) for port in (reference, nearly, noisy(2, 0.004), few)]
    assert luck[0] == 0
    assert 20 * luck[1] < 3 * luck[2] < 0.2
    assert luck[3] > 0.2


def test_numbers_of_a_wide_type_that_are_all_narrow_are_seen_and_no_narrow_types():
    wide, narrow = TRUTH.astype(np.float32), LOW.astype(np.float32)
    assert "fits into bfloat16" in seen(wide, narrow)
    assert seen(narrow, narrow) == seen(narrow, wide) == ""
    mixed = narrow.copy()
    mixed[-1] = wide[-1]
    assert "fits" not in seen(wide, mixed)
    assert "fits" not in seen(noisy(1, 0.002), LOW)


def test_what_the_reference_rounds_once_the_port_must_too_but_not_backwards():
    off = LOW.copy()
    off[-1] = np.nextafter(off[-1], jnp.bfloat16(np.inf))
    assert "exact" in seen(LOW, off)
    assert seen(LOW, off, forward=False) == ""
    assert seen(LOW, LOW) == ""
    assert seen(off, noisy(1, 0.0)) == ""


def test_errors_that_lean_one_way_are_seen_though_they_are_no_larger():
    reference, smaller = noisy(1, 0.004), noisy(2, 0.002, around=0.998)
    found = rounding(reference, smaller, TRUTH)
    assert "lean towards zero" in seen(reference, smaller)
    assert found.port_lean < 0
    assert seen(smaller, reference) == ""
    assert "lean" in verdict(reference, smaller)[2].note


def test_seeds_add_up():
    halves = [rounding(LOW[part], LOW[part], TRUTH[part]) for part in (slice(0, 9000), slice(9000, None))]
    whole = rounding(LOW, LOW, TRUTH)
    both = halves[0] + halves[1]
    assert both.elements == whole.elements
    assert (both.lean, both.port_lean) == pytest.approx((whole.lean, whole.port_lean))
    assert both.exact
    assert both.port_exact
    assert not (halves[0] + rounding(LOW, noisy(1, 0.01), TRUTH)).port_exact


@pytest.mark.slow
def test_a_divisor_rounded_to_bfloat16_is_caught_though_its_error_is_smaller_than_the_references():
    (outcome,) = inject(choose(None, "divisor rounded"))
    assert outcome.right, outcome.result.sentence
    assert "lean towards zero" in outcome.result.first_divergence.note


@pytest.mark.long
def test_every_fault_of_rounding_is_caught_at_its_stage():
    from parity.faults.rounding import FAULTS

    elsewhere = [o.result.sentence for o in inject(FAULTS) if not o.right]
    assert not elsewhere
