"""Safetensors without a framework: float32, float64, and the narrower types that NumPy's reader refuses."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from twinstep.errors import UserError
from twinstep.pretrained.arrays import DTYPES, widen
from twinstep.pretrained.files import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # names the file of each tensor, where Hugging Face splits a large model


def read_safetensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder's model.safetensors, or of the files that its index names, in float32 or float64.

    Raises UserError if one is missing, damaged or of a type that does not widen to these.
    """
    files = [WEIGHTS]
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{folder / INDEX} has no weight_map; save the model again")
        files = sorted({Path(str(name)).name for name in weight_map.values()})
    arrays: dict[str, np.ndarray] = {}
    for name in files:
        try:
            arrays |= read_file(folder / name)
        except FileNotFoundError:
            raise UserError(f"{folder} has no {name}; copy the whole folder") from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / name} cannot be read: {error}; copy or save it again") from error
    return arrays


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file. Raises OSError and SafetensorError, too."""
    with safe_open(path, framework="np"):
        pass  # the library has now checked the header against the length of the file
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in DTYPES:
            held = {"I": "int", "U": "uint"}.get(dtype[0], dtype[0]) + dtype[1:]
            raise UserError(f"{path}: {name} has dtype {held}, which is not float32 nor widens to it")
        count = (end - start) // DTYPES[dtype].itemsize
        array = np.fromfile(path, DTYPES[dtype], count, offset=8 + size + start)
        arrays[name] = widen(array.reshape(shape), dtype)
    return arrays
