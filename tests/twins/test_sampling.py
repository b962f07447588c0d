"""The choice of a token: which logits stay, and how often each token comes."""

import numpy as np
import pytest

LOGITS_BV = np.log(np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], np.float32))
NUCLEI = [(0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.91, 4), (1e-6, 1)]  # top_p, tokens it leaves of LOGITS_BV
ENDS = [0.0, float(np.nextafter(np.float32(1), np.float32(0)))]  # of the unit interval


@pytest.fixture
def kept(twin):
    """Which tokens stay, from top_k and top_p."""
    filter_logits = twin.module("sampling").filter_logits
    return lambda *filters: np.isfinite(np.asarray(filter_logits(twin.array(LOGITS_BV), *filters))).tolist()


@pytest.fixture
def sample(twin):
    """Tokens from logits, numbers in [0, 1) and a temperature, without filters."""
    sample = twin.module("sampling").sample
    return lambda logits_BV, uniform_B, temperature: np.asarray(
        sample(twin.array(logits_BV), twin.array(np.asarray(uniform_B, np.float32)), temperature, None, 1.0)
    )


def test_top_k_leaves_the_k_largest_logits(kept):
    assert kept(2, 1.0) == [[True, True, False, False], [False, False, True, True]]


@pytest.mark.parametrize(("top_p", "count"), NUCLEI)
def test_top_p_leaves_the_fewest_tokens_that_reach_it(kept, top_p, count):
    assert kept(None, top_p) == [[i < count for i in range(4)], [3 - i < count for i in range(4)]]


def test_top_p_counts_probability_among_the_top_k(kept):
    # 0.4 of 0.7 is more than 0.5: the nucleus is one token, where without top-k it would be two.
    assert kept(2, 0.5)[0] == [True, False, False, False]


def test_tokens_come_with_their_probability(sample):
    uniform_B = (np.arange(1000) + 0.5) / 1000  # each number in [0, 1) once
    logits_BV = np.tile(LOGITS_BV[:1], (1000, 1))
    assert np.bincount(sample(logits_BV, uniform_B, 1.0), minlength=4).tolist() == [400, 300, 200, 100]
    sharper = LOGITS_BV[0] / 0.5
    expected = 1000 * np.exp(sharper) / np.exp(sharper).sum()
    assert np.abs(np.bincount(sample(logits_BV, uniform_B, 0.5), minlength=4) - expected).max() <= 1


@pytest.mark.parametrize("number", ENDS)
def test_the_ends_of_the_unit_interval_choose_tokens_that_have_a_probability(sample, number):
    logits_BV = np.full((1, 1000), -np.inf, np.float32)
    logits_BV[0, [300, 400, 500]] = [1.0, 2.0, 3.0]
    assert sample(logits_BV, [number], 1.0).tolist() == [300 if number == 0 else 500]


def test_temperature_zero_takes_the_first_of_the_likeliest(sample):
    logits_BV = np.array([[1.0, 5.0, 5.0, 2.0]], np.float32)
    assert sample(logits_BV, [0.9], 0.0).tolist() == [1]
    assert sample(logits_BV, [0.9], 1e-30).tolist() == [1]
