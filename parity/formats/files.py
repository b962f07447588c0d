"""Reading and writing single files, with one clear line for whatever is wrong with them."""

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from twinstep.errors import UserError
from twinstep.run_dir import TOKENIZER


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """An object, one value a line."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, text: str | None) -> None:
    """A tokenizer.json of this text; none for None."""
    if text is not None:
        (folder / TOKENIZER).write_text(text, encoding="utf-8")


def read_torch(path: Path) -> Any:
    """What torch.save wrote, if that is tensors and plain values only: no code in the file is run.

    Raises UserError if it is anything else, or damaged.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about old pickles: our own line is enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is damaged, or holds more than tensors and would run code; it is not read") from None
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; copy the whole folder") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read: {reason}; copy it again") from error
