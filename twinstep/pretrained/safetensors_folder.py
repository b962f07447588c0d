"""A folder of `model.safetensors`, names as in torch, and our `config.json`: weights without a training's state."""

from pathlib import Path

import numpy as np

from twinstep.config import Config, from_dict
from twinstep.errors import UserError
from twinstep.pretrained.files import read_json
from twinstep.pretrained.safetensors_file import read_safetensors


def read_config(source: Path) -> Config:
    """Raises UserError if there is none of ours."""
    path = source / "config.json"
    values = read_json(path)
    try:
        return from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_weights(source: Path) -> dict[str, np.ndarray]:
    """Raises UserError if a file is missing or damaged."""
    return read_safetensors(source)
