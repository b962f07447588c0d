"""Reading and writing single files, with one clear line for whatever is wrong with them."""

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from twinstep.data import load_tokenizer
from twinstep.errors import UserError
from twinstep.run_dir import TOKENIZER

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # names the file of each tensor, where Hugging Face splits a large model


def read_json(path: Path) -> dict[str, Any]:
    """An object. Raises UserError if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; copy the whole folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; copy or save it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; copy or save it again")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """An object, one value a line."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_tokenizer(folder: Path) -> str | None:
    """The text of a folder's tokenizer.json, None if it has none. Raises UserError if it is not one of ours."""
    path = folder / TOKENIZER
    if not path.exists():
        return None
    load_tokenizer(path)
    return path.read_text(encoding="utf-8")


def write_tokenizer(folder: Path, text: str | None) -> None:
    """The inverse of `read_tokenizer`."""
    if text is not None:
        (folder / TOKENIZER).write_text(text, encoding="utf-8")


def read_safetensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's model.safetensors, or of the files that its index names.

    Raises UserError if one is missing or damaged.
    """
    files = [WEIGHTS]
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{folder / INDEX} has no weight_map; save the model again")
        files = sorted({Path(str(name)).name for name in weight_map.values()})
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        try:
            tensors |= load_file(folder / name)
        except FileNotFoundError:
            raise UserError(f"{folder} has no {name}; copy the whole folder") from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / name} cannot be read: {error}; copy or save it again") from error
    return tensors


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
