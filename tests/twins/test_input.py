"""Grain and the DataLoader over numbered batches: in order, from anywhere, shared among processes."""

import numpy as np
import pytest

from twinstep.data import load_data
from twinstep.presets import DEFAULTS


@pytest.fixture(scope="module")
def data():
    return load_data(DEFAULTS["linear"])


def test_a_stream_begun_in_the_middle_goes_on_as_the_whole_one(twin, data):
    train_batches = twin.module("input").train_batches
    whole, rest = list(train_batches(data.train, 0, 30)), list(train_batches(data.train, 12, 30))
    assert (len(whole), len(rest)) == (30, 18)
    for number, (expected, found) in enumerate(zip(whole[12:], rest, strict=True), 12):
        np.testing.assert_array_equal(found["inputs"], expected["inputs"], err_msg=str(number))
        np.testing.assert_array_equal(found["inputs"], data.train.batch(number)["inputs"])


def test_processes_share_a_batch(twin, data):
    shards = [list(twin.module("input").train_batches(data.train, 0, 3, shard, 2)) for shard in range(2)]
    for number in range(3):
        joined = np.concatenate([shard[number]["targets"] for shard in shards], axis=1)
        np.testing.assert_array_equal(joined, data.train.batch(number)["targets"])


def test_evaluation_reads_all_batches_or_a_limited_number(twin, data):
    eval_batches, source = twin.module("input").eval_batches, data.validation
    assert len(list(eval_batches(source, 0))) == source.batches
    assert len(list(eval_batches(source, 2))) == 2
    assert len(list(eval_batches(source, 10**6))) == source.batches
