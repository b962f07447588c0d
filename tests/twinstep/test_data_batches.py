"""Batches by number: shards, micro-steps, epochs, shifts, masks."""

import numpy as np
import pytest

from tests.helpers import corpora
from twinstep.config import Config, MLPConfig, TabularConfig, TrainConfig
from twinstep.data import load_data
from twinstep.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.write(tmp_path_factory.mktemp("data") / "corpus", corpora.documents(60))


def mlp_config(batch_size: int, accumulation: int, seed: int = 0) -> Config:
    return Config(
        model=MLPConfig(shared_dropout=True, hidden=32, dropout=0.3),
        data=TabularConfig(),
        train=TrainConfig(batch_size=batch_size, accumulation=accumulation, seed=seed),
    )


def sources(folder, kind: str, accumulation: int = 1, seed: int = 0):
    if kind == "table":
        return load_data(mlp_config(16, accumulation, seed))
    return corpora.load(folder, batch_size=16, accumulation=accumulation, seed=seed, masked_targets=0.3)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and one[key].tobytes() == other[key].tobytes() for key in one
    )


@pytest.mark.parametrize("kind", ["text", "table"])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("shards", [2, 4])
def test_shards_put_together_are_the_global_batch_to_the_byte(folder, kind, accumulation, shards):
    data = sources(folder, kind, accumulation)
    for number in (0, 3, data.train.batches - 1, data.train.batches, 7 * data.train.batches + 2):
        whole = data.train.batch(number)
        parts = [data.train.batch(number, shard, shards) for shard in range(shards)]
        assert all(
            part[key].shape[:2] == (accumulation, 16 // accumulation // shards) for part in parts for key in part
        )
        assert same(whole, {key: np.concatenate([part[key] for part in parts], axis=1) for key in whole})
    for number in range(data.validation.batches):
        whole = data.validation.batch(number)
        parts = [data.validation.batch(number, shard, shards) for shard in range(shards)]
        assert same(whole, {key: np.concatenate([part[key] for part in parts]) for key in whole})


@pytest.mark.parametrize("kind", ["text", "table"])
def test_accumulation_only_reshapes_the_global_batch(folder, kind):
    whole = sources(folder, kind).train.batch(5)
    micro = sources(folder, kind, accumulation=4).train.batch(5)
    for key in whole:
        assert micro[key].shape[:2] == (4, 4)
        np.testing.assert_array_equal(micro[key].reshape(whole[key].shape), whole[key])


@pytest.mark.parametrize("kind", ["text", "table"])
def test_a_batch_is_the_same_from_a_fresh_load_and_in_any_order_of_reading(folder, kind):
    one, other = sources(folder, kind), sources(folder, kind)
    numbers = [4, 0, one.train.batches + 1, 2]
    forward = {number: one.train.batch(number) for number in numbers}
    for number in reversed(numbers):
        assert same(forward[number], other.train.batch(number))


@pytest.mark.parametrize("kind", ["text", "table"])
def test_another_seed_orders_the_training_data_otherwise_and_not_the_validation_data(folder, kind):
    one, other = sources(folder, kind), sources(folder, kind, seed=1)
    key = "tokens" if kind == "text" else "inputs"
    assert (one.train.batch(0)[key] != other.train.batch(0)[key]).any()
    np.testing.assert_array_equal(one.validation.batch(0)[key], other.validation.batch(0)[key])


def test_an_epoch_holds_every_row_of_the_stream_once_and_the_next_one_in_another_order(tmp_path):
    texts = corpora.documents(60)
    data = corpora.load(corpora.write(tmp_path / "corpus", texts), batch_size=1)
    stream = corpora.stream_of([text for i, text in enumerate(texts) if i % 20 != 19])
    rows = [tuple(stream[i : i + 17]) for i in range(0, len(stream) - 16, 16)]
    assert data.train.examples == data.train.batches == len(rows)
    for epoch in (0, 1, 5):
        assert corpora.training_rows(data, epoch) == sorted(rows)
    first = [data.train.batch(i)["tokens"].tolist() for i in range(len(rows))]
    second = [data.train.batch(len(rows) + i)["tokens"].tolist() for i in range(len(rows))]
    assert first != second
    in_order = [[[list(row[:16])]] for row in rows]
    assert first != in_order
    assert second != in_order


def test_what_does_not_fill_a_training_batch_is_dropped(folder):
    data = corpora.load(folder, batch_size=7)
    assert data.train.examples % 7 != 0, "this corpus does not try the case"
    assert data.train.batches == data.train.examples // 7
    rows = corpora.training_rows(data)
    assert len(rows) == len(set(rows)) == 7 * data.train.batches


def test_validation_is_the_held_out_stream_in_order_and_scores_each_token_once(tmp_path):
    texts = corpora.documents(60)
    data = corpora.load(corpora.write(tmp_path / "corpus", texts))
    held_out = texts[19::20]
    assert corpora.validation_stream(data) == corpora.stream_of(held_out)
    batches = [data.validation.batch(number) for number in range(data.validation.batches)]
    assert {batch["tokens"].shape for batch in batches} == {(4, 16)}
    assert sum(int(batch["target_bytes"].sum()) for batch in batches) == len("".join(held_out).encode())
    last = batches[-1]
    ignored = last["targets"] == -1
    assert ignored.any(), "this corpus does not try the padding"
    assert not last["tokens"][ignored].any()
    assert not last["target_bytes"][ignored].any()
    for batch in batches:
        np.testing.assert_array_equal(batch["target_bytes"], (batch["targets"] >= 0) & (batch["targets"] != 255))


def test_validation_counts_the_bytes_of_every_target_under_bpe_too(tmp_path):
    texts = corpora.documents(60)
    options = {"tokenizer": "bpe", "bpe_vocab_size": 300}
    data = corpora.load(corpora.write(tmp_path / "corpus", texts), **options)
    masked = corpora.load(tmp_path / "corpus", masked_targets=0.4, **options)
    assert data.tokenizer.token_bytes[-1] > 1, "an index of -1 would not be seen"
    counted = 0
    for number in range(data.validation.batches):
        batch, other = data.validation.batch(number), masked.validation.batch(number)
        counted += int(batch["target_bytes"].sum())
        assert not batch["target_bytes"][batch["targets"] == -1].any()
        kept = other["targets"] != -1
        np.testing.assert_array_equal(other["target_bytes"], np.where(kept, batch["target_bytes"], 0))
    assert counted == len("".join(texts[19::20]).encode())


def test_every_array_has_the_type_that_the_trainers_expect(folder):
    text, table = sources(folder, "text"), sources(folder, "table")
    types = {
        "tokens": "int32",
        "targets": "int32",
        "target_bytes": "int32",
        "inputs": "float32",
        "dropout_mask": "bool",
    }
    seen = set()
    for source in (text.train, text.validation, table.train, table.validation):
        for key, array in source.batch(0).items():
            assert array.dtype == types[key], key
            seen.add(key)
    assert seen == set(types)


def test_masked_targets_are_the_asked_share_and_nothing_else_changes(folder):
    plain = corpora.load(folder, batch_size=16)
    masked = corpora.load(folder, batch_size=16, masked_targets=0.3)
    share = []
    for number in range(40):
        one, other = plain.train.batch(number), masked.train.batch(number)
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
        hidden = other["targets"] == -1
        np.testing.assert_array_equal(one["targets"][~hidden], other["targets"][~hidden])
        share.append(hidden.mean())
    assert abs(np.mean(share) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / (40 * 16 * 16))
    assert len(set(share)) > 1, "every batch has the same mask"
    validation = [masked.validation.batch(number) for number in range(masked.validation.batches)]
    hidden = np.concatenate([batch["targets"].ravel() == -1 for batch in validation])
    full = np.concatenate(
        [plain.validation.batch(number)["targets"].ravel() == -1 for number in range(len(validation))]
    )
    assert 0.2 < (hidden & ~full).sum() / (~full).sum() < 0.4
    assert not any(batch["target_bytes"][batch["targets"] == -1].any() for batch in validation)


def test_dropout_masks_keep_the_asked_share_and_change_with_seed_and_batch():
    data, other = load_data(mlp_config(16, 1)), load_data(mlp_config(16, 1, seed=1))
    masks = np.stack([data.train.batch(number)["dropout_mask"] for number in range(50)])
    assert abs(masks.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / masks.size)
    assert len({mask.tobytes() for mask in masks}) == 50
    assert (masks[0] != other.train.batch(0)["dropout_mask"]).any()
    assert "dropout_mask" not in data.validation.batch(0)


@pytest.mark.parametrize(("accumulation", "shards"), [(1, 3), (4, 8), (2, 16)])
@pytest.mark.parametrize("kind", ["text", "table"])
def test_a_micro_step_that_the_devices_cannot_share_is_named(folder, kind, accumulation, shards):
    data = sources(folder, kind, accumulation)
    with pytest.raises(UserError, match=f"= {16 // accumulation} is not divisible by {shards} devices"):
        data.train.batch(0, 0, shards)


@pytest.mark.parametrize("kind", ["text", "table"])
def test_numbers_without_a_batch_are_refused(folder, kind):
    data = sources(folder, kind)
    for source, number in ((data.train, -1), (data.validation, -1), (data.validation, data.validation.batches)):
        with pytest.raises(IndexError, match=str(number)):
            source.batch(number)
