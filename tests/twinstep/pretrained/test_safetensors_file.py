import json
import random

import pytest
import torch
from safetensors.torch import save_file

from twinstep.errors import UserError
from twinstep.pretrained.safetensors_file import INDEX, WEIGHTS, read_safetensors

TENSORS = {
    "bfloat16": torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)[:32640].reshape(2, -1),
    "float16": torch.arange(31744, dtype=torch.int16).view(torch.float16),
    "float32": torch.tensor([[1e-45, -0.0, 3.4e38], [1.0, 2.0, 3.0]]),
    "float64": torch.tensor([1 + 2**-52], dtype=torch.float64),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
}


def test_every_type_widens_exactly(tmp_path):
    save_file(TENSORS, tmp_path / WEIGHTS, metadata={"format": "pt"})
    found = read_safetensors(tmp_path)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        expected = (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()
        assert found[name].dtype == expected.dtype, name
        assert found[name].shape == expected.shape, name
        assert found[name].tobytes() == expected.tobytes(), name


def test_a_model_in_several_files_is_read_by_its_index(tmp_path):
    weight_map = {}
    for number, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"model-{number}.safetensors")
        weight_map[name] = f"../elsewhere/model-{number}.safetensors"  # a path is no name: the file lies in the folder
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert set(read_safetensors(tmp_path)) == set(TENSORS)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model-2\.safetensors"):
        read_safetensors(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        read_safetensors(tmp_path)


def test_a_type_that_does_not_widen_is_named(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int32)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="b has dtype int32, which is not float32"):
        read_safetensors(tmp_path)


def test_a_file_with_random_bytes_in_it_is_read_or_refused_and_never_more(tmp_path):
    choose, refused = random.Random(0), 0
    save_file({"a": torch.ones(3, 4), "b": torch.ones(2).bfloat16()}, tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for number in range(400):
        data = bytearray(whole)
        if number % 2:
            data[choose.randrange(150)] = choose.randrange(256)
        else:
            del data[choose.randrange(len(data)) :]
        (tmp_path / WEIGHTS).write_bytes(data)
        try:
            read_safetensors(tmp_path)
        except UserError:
            refused += 1
    assert refused > 200
