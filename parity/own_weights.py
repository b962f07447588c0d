"""A user's own weights as the start of a check, from any folder that `parity convert` reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from parity.check_configs import STEPS
from parity.convert import detect, read
from parity.side import Named
from twinstep.config import Config, CorpusConfig, DeviceConfig, MLPConfig
from twinstep.errors import UserError
from twinstep.run_dir import TOKENIZER

SEQUENCES, ROWS = 2, 32  # of one step; a check holds every array several times, so the batch is small


def trained_subject(folder: Path, model: str | None) -> Config:
    """The configuration of a checkpoint, its training cut to a check: a small batch in two micro-steps, few steps.

    Model, data and optimizer stay the checkpoint's own, so what its optimizer leaves idle is reported as unchecked.
    Where its tokenizer is not in the folder, texts are read as bytes.
    Raises UserError if the folder holds no checkpoint that can be read, or one of another model than `model`.
    """
    config = read(folder, detect(folder), None).config
    if model not in (None, config.model_name):
        raise UserError(f"{folder} holds the model {config.model_name}, not {model}; leave MODEL out")
    if isinstance(config.data, CorpusConfig) and config.data.tokenizer == "bpe" and tokenizer_of(folder) is None:
        config = replace(config, data=replace(config.data, tokenizer="bytes"))
    if isinstance(config.model, MLPConfig):
        config = replace(config, model=replace(config.model, shared_dropout=True))
    train = replace(
        config.train,
        dtype="float64",
        steps=STEPS,
        target_flops=None,
        tokens_per_parameter=None,
        batch_tokens=None,
        matmul_precision="highest",
        batch_size=SEQUENCES if isinstance(config.data, CorpusConfig) else ROWS,
        accumulation=2,
        seed=0,
        eval_batches=2,
    )
    return replace(config, train=train, devices=DeviceConfig())


def trained_weights(folder: Path) -> Named:
    """Parameters and buffers by name, float64. Raises UserError as `trained_subject` does."""
    return {name: array.astype(np.float64) for name, array in read(folder, detect(folder), None).weights.items()}


def tokenizer_of(folder: Path) -> Path | None:
    """The folder's tokenizer.json, if it has one."""
    path = folder / TOKENIZER
    return path if path.exists() else None
