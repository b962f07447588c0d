import collections
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from twinstep.errors import UserError
from twinstep.pretrained.torch_file import GLOBALS, read_state_dict


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(7, 4).bfloat16()
        self.norm = nn.BatchNorm1d(4).double()
        self.head = nn.Linear(4, 7, bias=False)
        self.narrow = nn.Parameter(torch.randn(3, 2).half())
        self.scalar = nn.Parameter(torch.tensor(2.5))


def state_dict() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = Net().state_dict()
    del state["norm.num_batches_tracked"]
    return state


def assert_same(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        wide = tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()
        assert found[name].dtype == wide.numpy().dtype, name
        assert found[name].flags.c_contiguous, name
        assert np.array_equal(found[name], wide.numpy()), name


def views() -> dict[str, torch.Tensor]:
    """Tensors that share a storage, begin within it, or go through it by other strides."""
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "base": base,
        "rows": base[1:3],
        "columns": base[:, 2],
        "transpose": base.T,
        "every_second": base[::2, 1::2],
    }


@pytest.mark.parametrize(
    "tensors",
    [
        state_dict(),
        dict(state_dict()),
        {name: nn.Parameter(tensor) for name, tensor in state_dict().items()},
        collections.OrderedDict(Net().named_parameters()),
        views(),
        {"long" * 100: torch.randn(70_000)},  # a long name, and a size beyond 16 bits
        {},
    ],
    ids=["module", "dict", "parameters", "ordered", "views", "long", "empty"],
)
def test_what_torch_saved_is_read_bit_for_bit(tensors, tmp_path):
    torch.save(tensors, tmp_path / "model.pt")
    assert_same(read_state_dict(tmp_path / "model.pt"), torch.load(tmp_path / "model.pt", weights_only=True))


def test_numbers_at_the_edges_widen_exactly(tmp_path):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    tensors = {"bfloat16": bits.view(torch.bfloat16), "float16": bits.clone().view(torch.float16)}
    torch.save(tensors, tmp_path / "model.pt")
    found = read_state_dict(tmp_path / "model.pt")
    for name, tensor in tensors.items():
        expected = tensor.float().numpy()
        finite = np.isfinite(expected)
        assert np.array_equal(found[name][finite].view(np.uint32), expected[finite].view(np.uint32))
        assert np.array_equal(np.isnan(found[name]), np.isnan(expected))


def refuse(path: Path, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Build:
    """Pickles as an object with a state of its own."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return collections.OrderedDict, (), self.state


ATTACKS = {
    "a system call": lambda file: Call(os.system, f"touch {file}"),
    "a method": lambda file: Call(Path.touch, file),
    "eval": lambda file: Call(eval, f"open({str(file)!r}, 'w')"),
    "getattr": lambda file: Call(getattr, Path, "touch"),
    "another function of torch": lambda file: Call(torch.ones, 3),
    "a module": lambda file: nn.Linear(2, 2),
    "a function in place of a value": lambda file: {"a": os.system},
    "a set": lambda file: {"a": {1, 2}},
    "bytes": lambda file: {"a": b"bytes"},
    "a call within a tensor": lambda file: {"a": torch.ones(2), "b": [Call(os.remove, str(file))]},
    "the state of an object": lambda file: Build([("__class__", 3)]),
    "another state": lambda file: Build((None, {"__class__": 3})),
    "arguments for a dict": lambda file: Call(collections.OrderedDict, [("a", 1)]),
    "a tuple as a key": lambda file: {("a", "b"): torch.ones(2)},
    "a tensor's function without a tensor": lambda file: Call(torch._utils._rebuild_tensor_v2, 1, 2, (), ()),
    "a parameter without a tensor": lambda file: Call(torch._utils._rebuild_parameter, {}, False, {}),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(attack, tmp_path):
    torch.save(ATTACKS[attack](tmp_path / "exploded"), tmp_path / "model.pt")
    refuse(tmp_path / "model.pt", "model.pt is damaged, or holds more than tensors and would run code|no state_dict")
    assert not (tmp_path / "exploded").exists()


def test_nothing_but_three_names_and_the_storages_can_be_called():
    assert {name for (name,) in GLOBALS if not name.endswith("Storage")} == {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
    }


def rewrite(path: Path, change) -> None:
    """Change the files in a zip; `change` gets them by name."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    compression = change(files) or zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def edit(files: dict[str, bytes], name: str, change) -> None:
    files[f"model/{name}"] = change(files[f"model/{name}"])


def put_pickle(files: dict[str, bytes], *opcodes: bytes) -> None:
    files["model/data.pkl"] = pickle.PROTO + b"\2" + b"".join(opcodes) + pickle.STOP


DAMAGES = {
    "a storage that is missing": (lambda files: files.pop("model/data/0") and None, "cannot be read"),
    "a storage that is too short": (lambda files: edit(files, "data/0", lambda d: d[:-4]), "'?a'? does not lie in its"),
    "a storage that is torn": (lambda files: edit(files, "data/0", lambda d: d[:-1]), "cannot be read"),
    "no pickle": (lambda files: files.pop("model/data.pkl") and None, "cannot be read"),
    "a pickle that is torn": (lambda files: edit(files, "data.pkl", lambda d: d[:-20]), "model.pt "),
    "an empty pickle": (lambda files: edit(files, "data.pkl", lambda d: b""), "cannot be read"),
    "another byte order": (lambda files: files.update({"model/byteorder": b"big"}), "big-endian"),
    "compression": (lambda files: zipfile.ZIP_DEFLATED, "compressed"),
    "a stack without a mark": (lambda files: put_pickle(files, pickle.EMPTY_LIST, pickle.APPENDS), "cannot be read"),
    "a memo that holds nothing": (lambda files: put_pickle(files, pickle.BINGET, b"\7"), "cannot be read"),
    "no dict": (lambda files: put_pickle(files, pickle.NONE), "holds no state_dict"),
    "a dict of numbers": (
        lambda files: put_pickle(files, b"}X\1\0\0\0aK\1s"),
        "holds no state_dict",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_ends_in_one_line(damage, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(3, 5)}, path)
    change, says = DAMAGES[damage]
    rewrite(path, change)
    refuse(path, says)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (16,), (1,)),
        (1, (15,), (1,)),
        (0, (3, 5), (6, 1)),
        (0, (2**40,), (0,)),
        (2**50, (1,), (1,)),
        (0, (0,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(offset, shape, strides, tmp_path):
    path = tmp_path / "model.pt"
    tensor = torch.ones(15)
    storage = tensor.untyped_storage()
    call = Call(torch._utils._rebuild_tensor_v2, torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32,
                _internal=True), offset, shape, strides, False, collections.OrderedDict())  # fmt: skip
    torch.save({"a": call}, path)
    refuse(path, "a does not lie in its storage")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_a_tensor_of_another_type_is_named(dtype, tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.ones(2).to(dtype)}, tmp_path / "model.pt")
    refuse(tmp_path / "model.pt", f"b has dtype {str(dtype).removeprefix('torch.')}, which is not float32")


def test_what_is_no_file_or_no_zip_is_refused(tmp_path):
    refuse(tmp_path / "model.pt", "has no model.pt")
    for content in (b"", b"PK\3\4", pickle.dumps({"a": 1}), bytes(1000)):
        (tmp_path / "model.pt").write_bytes(content)
        refuse(tmp_path / "model.pt", "cannot be read")
    torch.save({"a": torch.ones(2)}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    refuse(tmp_path / "model.pt", "cannot be read")


def test_a_file_with_random_bytes_in_it_is_read_or_refused_and_never_more(tmp_path):
    path, choose = tmp_path / "model.pt", random.Random(0)
    torch.save(state_dict(), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("model/data.pkl")
    outcomes = set()
    for number in range(600):
        if number % 3 == 0:
            path.write_bytes(whole[: choose.randrange(len(whole))])
        elif number % 3 == 1:
            path.write_bytes(with_random_bytes(whole, 1, choose))
        else:  # in the pickle alone, with a checksum that fits
            path.write_bytes(whole)
            damaged = with_random_bytes(pickled, choose.randint(1, 4), choose)
            rewrite(path, lambda files, new=damaged: files.update({"model/data.pkl": new}))
        outcomes.add(outcome(path))
    assert {"read", "refused"} <= outcomes
    assert all("\n" not in text for text in outcomes)


def with_random_bytes(data: bytes, count: int, choose: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[choose.randrange(len(changed))] = choose.randrange(256)
    return bytes(changed)


def outcome(path: Path) -> str:
    try:
        read_state_dict(path)
    except UserError as error:
        return "refused" if "\n" not in str(error) else str(error)
    return "read"
