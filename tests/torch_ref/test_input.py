"""The DataLoader over numbered batches: in order, from anywhere, shared among processes."""

import numpy as np
import torch

from torch_ref.input import eval_batches, train_batches
from twinstep.data import load_data
from twinstep.presets import DEFAULTS


def test_a_stream_begun_in_the_middle_goes_on_as_the_whole_one():
    source = load_data(DEFAULTS["linear"]).train
    whole, rest = list(train_batches(source, 0, 30)), list(train_batches(source, 12, 30))
    assert (len(whole), len(rest)) == (30, 18)
    for number, (expected, found) in enumerate(zip(whole[12:], rest, strict=True), 12):
        np.testing.assert_array_equal(found["inputs"], expected["inputs"], err_msg=str(number))
        np.testing.assert_array_equal(found["inputs"], source.batch(number)["inputs"])


def test_processes_share_a_batch():
    source = load_data(DEFAULTS["linear"]).train
    parts = [list(train_batches(source, 0, 3, shard, 2)) for shard in range(2)]
    for number in range(3):
        joined = torch.cat([part[number]["targets"] for part in parts], dim=1)
        np.testing.assert_array_equal(joined, source.batch(number)["targets"])


def test_evaluation_reads_all_batches_or_a_limited_number():
    source = load_data(DEFAULTS["linear"]).validation
    assert len(list(eval_batches(source, 0))) == source.batches
    assert len(list(eval_batches(source, 2))) == 2
