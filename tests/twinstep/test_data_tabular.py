"""scikit-learn's tables: division, scaling, padding."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split

from twinstep.config import Config, LinearConfig, MLPConfig, TabularConfig, TrainConfig
from twinstep.data import load_data


def load(dataset: str, batch_size: int = 1, seed: int = 0):
    return load_data(
        Config(LinearConfig(), TabularConfig(dataset), train=TrainConfig(batch_size=batch_size, seed=seed))
    )


def everything(source, training: bool) -> tuple[np.ndarray, np.ndarray]:
    batches = [source.batch(number) for number in range(source.batches)]
    inputs = np.concatenate([batch["inputs"][0] if training else batch["inputs"] for batch in batches])
    targets = np.concatenate([batch["targets"][0] if training else batch["targets"] for batch in batches])
    return inputs[targets >= 0], targets[targets >= 0]


@pytest.mark.parametrize(("dataset", "load_raw"), [("digits", load_digits), ("breast_cancer", load_breast_cancer)])
def test_the_table_is_split_as_scikit_learn_splits_it(dataset, load_raw):
    inputs, targets = load_raw(return_X_y=True)
    train, held_out, train_targets, held_out_targets = train_test_split(
        inputs, targets, test_size=0.2, random_state=0, stratify=targets
    )
    if dataset == "digits":
        train, held_out = train / 16, held_out / 16
    else:
        mean = train.sum(axis=0) / len(train)
        deviation = np.sqrt(((train - mean) ** 2).sum(axis=0) / len(train))
        train, held_out = (train - mean) / deviation, (held_out - mean) / deviation
    data = load(dataset)
    assert data.features == inputs.shape[1]
    assert data.classes == len(set(targets))
    assert data.tokenizer is None
    found, found_targets = everything(data.validation, training=False)
    np.testing.assert_allclose(found, held_out, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found_targets, held_out_targets)
    found, found_targets = everything(data.train, training=True)
    order, expected = np.lexsort(found.T), np.lexsort(train.astype(np.float32).T)
    np.testing.assert_allclose(found[order], train[expected], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found_targets[order], train_targets[expected])


def test_each_class_has_its_share_in_both_parts():
    data = load("digits")
    _, train = everything(data.train, training=True)
    _, held_out = everything(data.validation, training=False)
    shares = [np.bincount(part, minlength=10) / len(part) for part in (train, held_out)]
    np.testing.assert_allclose(shares[0], shares[1], atol=1 / len(held_out))
    assert (len(train), len(held_out)) == (1437, 360)


def test_training_inputs_of_breast_cancer_have_mean_zero_and_deviation_one():
    inputs, _ = everything(load("breast_cancer").train, training=True)
    np.testing.assert_allclose(inputs.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(inputs.std(axis=0, dtype=np.float64), 1, atol=1e-6)


def test_the_seed_changes_the_order_and_not_the_division():
    one, other = load("digits"), load("digits", seed=5)
    first, second = everything(one.train, training=True)[0], everything(other.train, training=True)[0]
    assert (first != second).any()
    np.testing.assert_array_equal(first[np.lexsort(first.T)], second[np.lexsort(second.T)])


def test_the_last_validation_batch_is_filled_up_with_ignored_rows():
    data = load("digits", batch_size=128)
    assert data.validation.batches == 3
    last = data.validation.batch(2)
    assert last["inputs"].shape == (128, 64)
    assert (last["targets"][: 360 - 256] >= 0).all()
    assert (last["targets"][360 - 256 :] == -1).all()
    assert not last["inputs"][360 - 256 :].any()


def test_masks_come_only_where_they_are_shared():
    own = load_data(Config(MLPConfig(), TabularConfig(), train=TrainConfig(batch_size=8)))
    assert set(own.train.batch(0)) == {"inputs", "targets"}


def test_a_table_has_no_gzip_baseline():
    with pytest.raises(ValueError, match="only text"):
        load("digits").validation_gzip_bits_per_byte()
