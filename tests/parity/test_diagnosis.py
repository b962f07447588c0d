"""What is said of a wrong tensor is right, and nothing is said where nothing is certain."""

import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

from parity.diagnosis import Neighbour, diagnose, in_common
from parity.faults.run import choose, inject

RANDOM = np.random.default_rng(0)
MATRIX, SQUARE, CUBE = (
    RANDOM.standard_normal((6, 10)),
    RANDOM.standard_normal((8, 8)),
    RANDOM.standard_normal((2, 8, 3)),
)
NARROW = MATRIX.astype(jnp.bfloat16).astype(np.float64)
ROUNDING = 1e-13


def guess(reference, port, rounding: float = ROUNDING) -> str:
    found = diagnose(np.asarray(reference), np.asarray(port), 0, rounding)
    return "" if found is None else found.guess


def with_changed(x: np.ndarray, at, by: float = 1.0) -> np.ndarray:
    changed = x.copy()
    changed[at] += by
    return changed


RIGHT = {
    "twice as large": (MATRIX, 2 * MATRIX),
    "half as large": (CUBE, 0.5 * CUBE),
    "negated": (MATRIX, -MATRIX),
    "4 times smaller": (MATRIX, MATRIX / 4),
    "1.07 times as large": (MATRIX, 1.07 * MATRIX),
    "larger by 7e-07 of itself": (MATRIX, (1 + 7e-7) * MATRIX),
    "smaller by 0.0005 of itself": (MATRIX, 0.9995 * MATRIX),
    "in bits, where PyTorch's is in nats (1 / ln 2 times as large)": (np.float64(2.3), np.float64(2.3) / math.log(2)),
    "zero everywhere": (MATRIX, 0 * MATRIX),
    "equal to PyTorch's in bfloat16": (MATRIX, NARROW),
    "equal to PyTorch's in float32": (MATRIX, MATRIX.astype(np.float32)),
    "rounded to bfloat16": (MATRIX, np.asarray((MATRIX * 1.004).astype(jnp.bfloat16), np.float64)),
    "transposed": (SQUARE, SQUARE.T),
    "reversed along axis 0": (MATRIX, MATRIX[::-1]),
    "with its axes in the order (1, 0, 2)": (SQUARE[..., None] * [1.0, 2.0], SQUARE.T[..., None] * [1.0, 2.0]),
    "the same numbers in another order": (MATRIX, MATRIX[[1, 0, 3, 2, 5, 4]]),
    "shifted by one position along axis 1, to the later": (CUBE, np.roll(CUBE, 1, axis=1)),
    "shifted by one position along axis 0, to the earlier": (MATRIX, np.concatenate([MATRIX[1:], 0 * MATRIX[:1]])),
    "wrong at position 0 of axis 1 only, which has 8": (CUBE, with_changed(CUBE, np.s_[:, 0])),
    "wrong at position 6 ... 7 of axis 0 only, which has 8": (SQUARE, with_changed(SQUARE, np.s_[6:])),
}


@pytest.mark.parametrize("said", RIGHT)
def test_what_is_certain_is_said_whatever_rounding_adds(said):
    reference, port = map(np.asarray, RIGHT[said])
    assert guess(reference, port) == said
    if "float" not in said:  # a number that is off by rounding is no longer of the narrower type
        assert guess(reference, port * (1 + 2e-15 * RANDOM.standard_normal(port.shape))) == said


UNCERTAIN = {
    "unrelated numbers": (MATRIX, RANDOM.standard_normal(MATRIX.shape)),
    "a factor and an error": (MATRIX, 2 * MATRIX + 1e-9 * MATRIX**2),
    "another factor in each row": (MATRIX, MATRIX * np.arange(1, 7)[:, None]),
    "one number, off by any factor": (np.float64(2.3), np.float64(2.9)),
    "ones for halves": (np.full(20, 0.7), np.ones(20)),  # a factor of no meaning, but constant: said as a number
    "numbers alike at all positions": (np.ones((3, 9)) * [[1], [2], [3]], np.ones((3, 9)) * [[5], [7], [6]]),
    "wrong in every second row": (SQUARE, with_changed(SQUARE, np.s_[::2])),
    "a reference of zeros": (0 * MATRIX, MATRIX),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCERTAIN)
def test_what_is_not_certain_is_not_said(case):
    said = guess(*UNCERTAIN[case])
    assert said == ("1.42857 times as large" if case == "ones for halves" else "")


@pytest.mark.parametrize("reference", [MATRIX, SQUARE, CUBE])
def test_rounding_as_coarse_as_bfloat16s_makes_nothing_up(reference):
    """By chance a few numbers are any factor's, and sorted samples of one distribution are alike."""
    for seed in range(1, 51):
        noise = np.random.default_rng(seed).standard_normal(reference.shape)
        assert guess(reference, reference * (1 + 0.1 * noise), 0.06) == ""
        assert guess(reference, np.mean(np.abs(reference)) * noise, 0.06) == ""
        assert guess(reference.flat[0], reference.flat[0] * (1 + noise.flat[0]), 0.06) == ""


def test_a_factor_near_a_simple_one_is_not_it_however_coarse_the_rounding():
    assert guess(CUBE, 0.72 * CUBE, 0.06) == "0.72 times as large"  # not the root of a half
    assert guess(CUBE, 2 * CUBE * (1 + 0.01 * RANDOM.standard_normal(CUBE.shape)), 0.06) == "twice as large"


def test_the_worst_element_the_norms_and_the_cosine_are_those_of_the_arrays():
    found = diagnose(np.array([[3.0, 4.0]]), np.array([[3.0, -4.0]]), 7, ROUNDING)
    assert (found.step, found.index, found.reference, found.port) == (7, [0, 1], 4.0, -4.0)
    assert found.norm_ratio == pytest.approx(1)
    assert found.cosine == pytest.approx((9 - 16) / 25)
    beside_zero = diagnose(np.zeros(2), np.ones(2), 0, ROUNDING)
    assert (beside_zero.norm_ratio, beside_zero.cosine) == (None, None)
    assert diagnose(MATRIX, MATRIX, 0, ROUNDING) is None


def of(group: str, status: str = "diverges", guess: str = "") -> Neighbour:
    return Neighbour(group, status, guess)


def test_what_all_of_a_group_or_all_tensors_share_is_said():
    twelve = [of("matrix")] * 12
    assert in_common(of("matrix"), [*twelve, of("head", "agrees")]) == "all 12 of group matrix, none of the others"
    assert (
        in_common(of("head"), [of("head"), *[of("matrix", "agrees")] * 12])
        == "the one of group head, none of the others"
    )
    twice = of("matrix", guess="twice as large")
    assert in_common(twice, [twice, of("head", guess="twice as large")]) == "twice as large, as all 2 of its kind are"
    assert (
        in_common(twice, [twice, of("head", "agrees")]) == "twice as large; the one of group matrix, none of the others"
    )


@pytest.mark.parametrize(
    "beside",
    [
        [of("matrix"), of("matrix"), of("head")],
        [of("matrix"), of("matrix", "agrees"), of("head", "agrees")],
        [of("matrix"), of("matrix", "unchecked"), of("head", "agrees")],
        [of("matrix"), of("matrix"), of("head", "unchecked")],
        [of("matrix")],
    ],
)
def test_a_part_of_a_group_or_more_than_one_shares_nothing(beside):
    assert in_common(of("matrix"), beside) == ""


# What is said of a fault of the catalogue: right, or nothing.
SAID = {
    "targets shifted twice": "shifted by one position along axis 2, to the earlier",
    "no weight decay": "zero everywhere",
    "mean of means": "",
    "accumulation by sum": "",
    "gradients added, not averaged": "twice as large, as all 2 of its kind are",
    "embedding detached": "zero everywhere",
    "clip without eps": "larger by X of itself, as all 2 of its kind are",
    "no Nesterov": "the one of group matrix, none of the others",
    "steps counted twice": "twice as large; the one of group matrix, none of the others",
    "features not scaled": "16 times as large",
    "loss in bits": "in bits, where PyTorch's is in nats (1 / ln 2 times as large)",
    "another default decay": "",
    "clip by value": "",
    "no bias correction": "the one of group vector, none of the others",
    "parameters updated twice": "twice as large, as all 2 of its kind are",
    "other coefficients": "the one of group matrix, none of the others",
}


@pytest.mark.long
def test_of_a_fault_what_is_certain_is_said_or_nothing():
    faults = [fault for name in SAID for fault in choose(None, name)]
    faults.sort(key=lambda fault: fault.model)  # one reference each
    said = {outcome.fault.name: outcome.result.first_divergence.guess for outcome in inject(faults)}
    assert {name: re.sub(r"\d\.\de-\d+", "X", words) for name, words in said.items()} == SAID
