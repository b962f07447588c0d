"""What has no distance says why, where, and on which side."""

import numpy as np

from parity.comparable import Unlike, not_finite, of_another_shape, unlike
from tests.parity.test_diagnosis import CUBE, MATRIX, RANDOM, with_changed


def test_another_layout_is_recognized_by_its_numbers_and_never_by_its_shape_alone():
    assert of_another_shape(MATRIX, MATRIX.T) == "transposed"
    assert of_another_shape(CUBE, CUBE.transpose(1, 2, 0)) == "the axes are in the order (1, 2, 0)"
    assert of_another_shape(MATRIX, MATRIX.reshape(3, 20)) == "the same numbers in the same order"
    assert of_another_shape(MATRIX, RANDOM.standard_normal((10, 6))) == ""
    assert of_another_shape(MATRIX, np.ones(3)) == ""


def test_numbers_that_are_not_finite_have_a_place_and_a_side():
    nan, inf = with_changed(MATRIX, (2, 3), np.nan), with_changed(MATRIX, (2, 3), np.inf)
    assert not_finite(MATRIX, MATRIX) is None
    assert not_finite(MATRIX, nan) == Unlike(f"nan in JAX, {MATRIX[2, 3]:g} in torch at [2, 3]")
    assert not_finite(inf, MATRIX) == Unlike(f"{MATRIX[2, 3]:g} in JAX, inf in torch at [2, 3]")
    assert not_finite(inf, nan) == Unlike("nan in JAX, inf in torch at [2, 3]")
    assert not_finite(nan, nan) == Unlike("nan on both sides at [2, 3]", False)
    row = with_changed(MATRIX, np.s_[1], np.nan)
    assert not_finite(MATRIX, row).note.endswith("at [1, 0], the first of 10 places of 60")
    assert not_finite(np.float64(1), np.float64(np.nan)).note == "nan in JAX, 1 in torch there"


def test_a_type_matters_where_numbers_are_rounded_and_not_where_they_are_equal():
    narrow = MATRIX.astype(np.float32)
    assert unlike(MATRIX, narrow, any_type=False) == Unlike("dtype float64 in torch, float32 in JAX")
    assert unlike(MATRIX, narrow, any_type=True) is None
