"""scikit-learn's small data sets for the classifiers."""

import hashlib

import numpy as np

from twinstep.config import Config, MLPConfig, TabularConfig
from twinstep.data.batches import TrainTable, ValidationTable
from twinstep.data.interface import Data
from twinstep.errors import UserError


def load_table(config: Config, table: TabularConfig) -> Data:
    """A stratified 80/20 split, the same for every seed of a run.

    digits: pixels, 0 to 16, divided by 16. breast_cancer: each feature standardized by the mean and the
    standard deviation of the training rows.
    """
    # Imported here: scikit-learn takes seconds to import, and the language models do without it.
    from sklearn.datasets import load_breast_cancer, load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits() if table.dataset == "digits" else load_breast_cancer()
    train_inputs, validation_inputs, train_targets, validation_targets = train_test_split(
        raw.data.astype(np.float64), raw.target, test_size=0.2, random_state=0, stratify=raw.target
    )
    if table.dataset == "digits":
        mean, scale = np.float64(0), np.float64(16)
    else:
        mean, scale = train_inputs.mean(axis=0), train_inputs.std(axis=0)
    if len(train_targets) < config.batch_size:
        raise UserError(
            f"--batch-size {config.batch_size} is more than the {len(train_targets)} training examples of "
            f"{table.dataset}; lower it"
        )
    model = config.model
    shares_dropout = isinstance(model, MLPConfig) and model.shared_dropout
    return Data(
        train=TrainTable(
            ((train_inputs - mean) / scale).astype(np.float32),
            train_targets.astype(np.int32),
            config.batch_size,
            config.train.accumulation,
            config.train.seed,
            hidden=model.hidden if isinstance(model, MLPConfig) and shares_dropout else None,
            dropout=model.dropout if isinstance(model, MLPConfig) else 0.0,
        ),
        validation=ValidationTable(
            ((validation_inputs - mean) / scale).astype(np.float32),
            validation_targets.astype(np.int32),
            config.batch_size,
        ),
        tokenizer=None,
        features=raw.data.shape[1],
        classes=len(raw.target_names),
        summary={
            "source": f"scikit-learn's {table.dataset}",
            "sha256": hashlib.sha256(raw.data.tobytes() + raw.target.tobytes()).hexdigest(),
            "train_examples": len(train_targets),
            "validation_examples": len(validation_targets),
        },
    )
