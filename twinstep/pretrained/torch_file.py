"""The tensors that torch.save wrote, without torch and without running anything that a file may hold.

A .pt file is a zip with a pickle, data.pkl, and the bytes of each tensor's storage beside it, data/0, data/1, ... A
pickle is a program for a small stack machine, which may call any function of Python. Here the machine is our own and
knows what a dict of tensors needs: plain values, and the names in `GLOBALS`. It imports and calls nothing.
"""

import math
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twinstep.errors import UserError
from twinstep.pretrained.arrays import DTYPES, widen


class RefusedError(Exception):
    """The pickle asks for more than tensors and plain values."""


class Name(NamedTuple):
    """What a pickle calls by its module and name."""

    name: str


class Storage(NamedTuple):
    """The numbers that tensors lie in: their type, and the file in the zip."""

    dtype: str
    key: str


class Tensor(NamedTuple):
    """Where a tensor's numbers lie in its storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
DICT, TENSOR, PARAMETER = (
    Name(name)
    for name in ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
)
GLOBALS = {DICT, TENSOR, PARAMETER, *(Name(f"torch {name}") for name in STORAGES)}

PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
MARK = object()

# What zipfile, pickletools and NumPy raise for bytes that are no zip, no pickle, or no numbers of a tensor.
DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, RuntimeError, ArithmeticError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that holds a dict of them by name, in float32 or float64.

    Raises UserError if it holds anything else, is damaged, or has a tensor of another type.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next((name for name in archive.namelist() if name.endswith("data.pkl")), "").removesuffix("data.pkl")
            if member(archive, f"{root}byteorder", b"little") != b"little":
                raise UserError(f"{path} was written on a big-endian machine, which is not supported")
            tensors = run_pickle(member(archive, f"{root}data.pkl"))
            if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
                raise UserError(f"{path} holds no state_dict; pass a file that torch.save wrote of one")
            return {str(name): read_tensor(path, str(name), archive, root, t) for name, t in tensors.items()}
    except RefusedError as error:
        raise UserError(
            f"{path} is damaged, or holds more than tensors and would run code ({error}); it is not read"
        ) from None
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; copy the whole folder") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read: {reason}; copy it again") from error


def member(archive: zipfile.ZipFile, name: str, default: bytes | None = None) -> bytes:
    """One file of the zip, whose members torch never compresses."""
    if default is not None and name not in archive.namelist():
        return default
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} in it is compressed")
    return archive.read(name)


def read_tensor(path: Path, name: str, archive: zipfile.ZipFile, root: str, tensor: Tensor) -> np.ndarray:
    """The numbers of one tensor."""
    dtype = tensor.storage.dtype
    if dtype not in DTYPES:
        raise UserError(f"{path}: {name} has dtype {dtype}, which is not float32 nor widens to it")
    numbers = np.frombuffer(member(archive, f"{root}data/{tensor.storage.key}"), DTYPES[dtype])
    shape, strides = tensor.shape, tensor.strides
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # No element lies outside, and a small file cannot ask for a large array by taking its numbers again and again.
    if 0 in shape or last >= numbers.size or math.prod(shape) > numbers.size:
        raise ValueError(f"{name} does not lie in its storage")
    strides = tuple(DTYPES[dtype].itemsize * stride for stride in strides)
    return widen(np.lib.stride_tricks.as_strided(numbers[tensor.offset :], shape, strides, writeable=False), dtype)


def run_pickle(data: bytes) -> Any:
    """What a pickle makes: dicts, lists, tuples, plain values and Tensors. Raises RefusedError for anything else."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO":
                pass
            case "MARK":
                stack.append(MARK)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case name if name in LITERALS:
                stack.append(argument)
            case name if name in PLAIN:
                stack.append(PLAIN[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(pop_to_mark(stack)))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if opcode.name == "APPEND" else pop_to_mark(stack)
                expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if opcode.name == "SETITEM" else pop_to_mark(stack)
                set_items(expect(stack[-1], dict), items)
            case "GLOBAL":
                if Name(argument) not in GLOBALS:
                    raise RefusedError(argument)
                stack.append(Name(argument))
            case "BINPERSID":
                stack.append(make_storage(stack.pop()))
            case "REDUCE":
                arguments = expect(stack.pop(), tuple)
                stack.append(call(expect(stack.pop(), Name), arguments))
            case "BUILD":  # torch hangs `_metadata` on a state_dict, which nothing here needs
                expect(stack.pop(), dict)
                expect(stack[-1], dict)
            case "STOP":
                return stack.pop()
            case _:
                raise RefusedError(opcode.name)
    raise EOFError("it has no end")


def pop_to_mark(stack: list[Any]) -> list[Any]:
    """The values above the last mark, which they leave with it."""
    values: list[Any] = []
    while (value := stack.pop()) is not MARK:
        values.append(value)
    return values[::-1]


def set_items(values: dict[Any, Any], items: list[Any]) -> None:
    """Keys and values in turn. Keys are strings and numbers: a nested tuple could take forever to hash."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        values[expect(key, str, int)] = value


def make_storage(identity: Any) -> Storage:
    """A storage from ("storage", its type, its file's name, its device, its length)."""
    match identity:
        case ("storage", Name(name), str(key), str(), int()) if name.partition(" ")[2] in STORAGES:
            return Storage(STORAGES[name.partition(" ")[2]], key)
    raise RefusedError("a storage that is none")


def call(function: Name, arguments: tuple[Any, ...]) -> Any:
    """What the three functions in GLOBALS make of their arguments."""
    match function, arguments:
        case Name(name), () if name == DICT.name:
            return {}
        case Name(name), (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if name == TENSOR.name:
            sizes = (offset, *shape, *strides)
            if len(shape) == len(strides) and all(type(size) is int and 0 <= size < 2**60 for size in sizes):
                return Tensor(storage, offset, shape, strides)
        case Name(name), (Tensor() as tensor, *_) if name == PARAMETER.name:
            return tensor
    raise RefusedError(function.name)


def expect(value: Any, *types: type) -> Any:
    """The value, if it is of one of the types. Raises RefusedError."""
    if type(value) not in types:
        raise RefusedError(f"{type(value).__name__} in the place of {types[0].__name__}")
    return value
