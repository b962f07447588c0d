"""Nested values with arrays in them as two files: JSON, and safetensors beside it. No framework is needed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from twinstep.errors import UserError

FORMAT = 1  # of the folder: another one is refused
ARRAY = "$array"  # {"$array": key} stands for an array in the JSON
DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}


def save_part(folder: Path, name: str, values: dict[str, Any]) -> None:
    """name.json and name.safetensors. Raises UserError for what neither can hold."""
    arrays: dict[str, np.ndarray] = {}
    plain = without_arrays(values, "", arrays)
    data = save({key: np.array(x, order="C") for key, x in arrays.items()})
    written = {"format": FORMAT, "sha256": checksum(data, plain), "values": plain}
    (folder / f"{name}.safetensors").write_bytes(data)
    (folder / f"{name}.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def load_part(folder: Path, name: str) -> dict[str, Any]:
    """What `save_part` was given, tuples as lists. Raises UserError for files that are missing, damaged or of another
    format."""
    mend = "copy the whole folder again, or record it again"
    text, tensors = folder / f"{name}.json", folder / f"{name}.safetensors"
    try:
        found = json.loads(text.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise UserError(
                f"{folder} is of format {found['format']}, and this version reads format {FORMAT}; record it again"
            )
        data = tensors.read_bytes()
        if checksum(data, found["values"]) != found["sha256"]:
            raise UserError(f"{text} or the file of arrays beside it is damaged; {mend}")
        return with_arrays(found["values"], {key: read_array(entry) for key, entry in deserialize(data)})
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise UserError(f"{folder} has no {missing}; pass a folder that `python -m parity record` wrote") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{text} or the file of arrays beside it cannot be read: {error}; {mend}") from error


def checksum(data: bytes, plain: Any) -> str:
    """Of both files."""
    return hashlib.sha256(data + json.dumps(plain).encode()).hexdigest()


def read_array(entry: dict[str, Any]) -> np.ndarray:
    """One array of a file."""
    return np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def without_arrays(value: Any, key: str, arrays: dict[str, np.ndarray]) -> Any:
    """The value with a reference in place of each array, which goes to `arrays` under its path in the value."""
    if isinstance(value, np.ndarray):
        if value.dtype not in [np.dtype(dtype) for dtype in DTYPES.values()]:
            raise UserError(f"{key} is an array of dtype {value.dtype}, which cannot be recorded")
        while key in arrays:
            key += "'"
        arrays[key] = value
        return {ARRAY: key}
    below = f"{key}/" if key else ""
    if isinstance(value, dict):
        return {name: without_arrays(part, f"{below}{name}", arrays) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_arrays(part, f"{below}{number}", arrays) for number, part in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{key} is of type {type(value).__name__}; arrays, numbers, strings and None can be recorded")


def with_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `without_arrays`."""
    if isinstance(value, dict):
        if value.keys() == {ARRAY}:
            return arrays[value[ARRAY]]
        return {name: with_arrays(part, arrays) for name, part in value.items()}
    return [with_arrays(part, arrays) for part in value] if isinstance(value, list) else value


def digest(value: Any) -> str:
    """Equal for equal values, arrays number by number."""
    arrays: dict[str, np.ndarray] = {}
    found = hashlib.sha256(json.dumps(without_arrays(value, "", arrays)).encode())
    for x in arrays.values():
        found.update(f"{x.dtype} {x.shape}".encode() + x.tobytes())
    return found.hexdigest()
