import math

import numpy as np
import pytest

from parity.budget import EPS, TOLERANCES, Error, Tolerance, error, judge
from parity.result import STAGES

RELATIVE = Tolerance("relative", 1e-6, "")
RATIO = Tolerance("ratio", 4.0, "")


def verdict(found: Error, tolerance=RELATIVE, eps=EPS["float64"], scale=0.0):
    return judge(found, tolerance, eps, scale)


def test_every_stage_has_a_tolerance_and_a_reason_in_every_dtype():
    for dtype in ("float64", "float32", "bfloat16"):
        assert set(TOLERANCES[dtype]) == set(STAGES)
        assert all(tolerance.reason for tolerance in TOLERANCES[dtype].values())


def test_the_error_of_a_port_is_measured_from_the_truth_and_not_from_the_reference():
    found = error(np.array([1.0, 2.0]), np.array([1.0, 4.0]), np.array([1.0, 3.0]))
    assert (found.port, found.reference, found.truth) == (1.0, 1.0, 10.0)
    assert error(np.ones(2), np.zeros(2), None) == Error(2.0, 0.0, 2.0)


def test_an_error_just_within_the_tolerance_agrees_and_one_just_beyond_diverges():
    assert verdict(Error((0.99e-6) ** 2, 0.0, 1.0)).status == "agrees"
    assert verdict(Error((1.01e-6) ** 2, 0.0, 1.0)).status == "diverges"


def test_a_ratio_is_taken_to_the_references_own_error():
    found = verdict(Error(9e-8, 1e-8, 1.0), RATIO, EPS["float32"])
    assert found.status == "agrees"
    assert found.ratio == pytest.approx(3.0)
    assert verdict(Error(25e-8, 1e-8, 1.0), RATIO, EPS["float32"]).status == "diverges"


def test_a_lucky_reference_counts_as_two_ulp_off():
    eps = EPS["float32"]
    assert verdict(Error((7 * eps) ** 2, 0.0, 1.0), RATIO, eps).ratio == pytest.approx(3.5)
    assert verdict(Error((9 * eps) ** 2, 0.0, 1.0), RATIO, eps).status == "diverges"


def test_a_difference_from_one_has_the_rounding_of_one():
    """Of a factor of 0.99 that is clipped by, the distance from 1 is right to an ulp of 1, not of 0.01."""
    eps = EPS["float32"]
    off = Error((5 * eps) ** 2, 0.0, 0.01**2)
    assert judge(off, RATIO, eps, 1.0).status == "diverges"
    assert judge(off, RATIO, eps, 1.0, whole=1.0).status == "agrees"
    assert judge(Error((9 * eps) ** 2, 0.0, 0.01**2), RATIO, eps, 1.0, whole=1.0).status == "diverges"


def test_two_zeros_are_unchecked_and_never_agree():
    assert verdict(Error(0.0, 0.0, 0.0)).status == "unchecked"
    assert verdict(Error(0.0, 0.0, 1e-40), scale=1.0).status == "unchecked"


def test_a_number_where_the_reference_is_zero_diverges():
    assert verdict(Error(1e-3, 0.0, 0.0)).status == "diverges"


def test_a_budget_as_large_as_the_tensor_checks_nothing():
    assert verdict(Error(0.01, 0.09, 1.0), RATIO, EPS["bfloat16"]).status == "unchecked"


def test_a_port_that_is_not_finite_diverges_and_a_reference_that_is_not_is_unchecked():
    assert verdict(Error(math.nan, 0.0, 1.0)).status == "diverges"
    assert verdict(Error(math.inf, 0.0, 1.0)).status == "diverges"
    assert verdict(Error(math.nan, math.nan, math.nan)).status == "unchecked"


def test_what_must_be_exact_has_no_budget():
    exact = Tolerance("exact", 0.0, "")
    assert verdict(Error(0.0, 0.0, 4.0), exact).status == "agrees"
    assert verdict(Error(1e-300, 0.0, 4.0), exact).status == "diverges"
    assert verdict(Error(0.0, 0.0, 0.0), exact).status == "agrees"
