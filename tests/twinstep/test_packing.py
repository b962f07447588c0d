"""The plan: every conversation once, none torn, little padding, the same each time."""

from itertools import pairwise

import numpy as np
import pytest

from twinstep.data.packing import WINDOW, pack

LENGTHS = np.random.default_rng(0).integers(3, 65, 1000)


def rows_of(plan) -> list[list[int]]:
    ends = plan.starts.tolist()
    return [plan.conversations[a:b].tolist() for a, b in pairwise(ends)]


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_conversation_stands_in_one_row_and_each_row_fits(seed):
    plan = pack(LENGTHS, 65, seed)
    rows = rows_of(plan)
    assert len(rows) == plan.rows
    assert sorted(n for row in rows for n in row) == list(range(1000))
    assert all(row for row in rows)
    assert max(LENGTHS[row].sum() for row in rows) <= 65


def test_little_is_padded():
    assert pack(LENGTHS, 65, 0).rows * 65 <= 1.05 * LENGTHS.sum()
    assert pack(LENGTHS, 1000, 0).rows * 1000 <= 1.01 * LENGTHS.sum() + 1000
    longest_first = pack(np.array([3, 40, 25, 62, 2]), 65, None)
    assert rows_of(longest_first) == [[3, 0], [1, 2], [4]]


def test_without_a_seed_a_conversation_stays_near_its_place():
    plan = pack(LENGTHS, 65, None)
    behind = np.arange(1000) - plan.conversations
    assert behind.min() >= -WINDOW


def test_the_plan_is_that_of_the_seed():
    same, again, other = (pack(LENGTHS, 65, seed) for seed in (5, 5, 6))
    assert rows_of(same) == rows_of(again)
    assert rows_of(same) != rows_of(other)


def test_a_conversation_longer_than_a_row_has_one_of_its_own():
    assert rows_of(pack(np.array([5, 500, 60]), 65, None)) == [[1], [2, 0]]


def test_no_conversation_makes_no_row():
    assert pack(np.array([], np.int64), 65, 0).rows == 0
