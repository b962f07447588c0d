"""A folder of `model.safetensors`, names as in torch, and our `config.json`: weights without a training's state."""

from pathlib import Path

from safetensors.numpy import save_file

from parity.formats.files import WEIGHTS, read_json, read_safetensors, read_tokenizer, write_json, write_tokenizer
from parity.formats.snapshot import Snapshot, as_numpy, without_places
from twinstep.config import from_dict, to_dict
from twinstep.errors import UserError


def read(source: Path) -> Snapshot:
    """Raises UserError if a file is missing or damaged."""
    values = read_json(source / "config.json")
    try:
        config = from_dict(values)
    except UserError as error:
        raise UserError(f"{source / 'config.json'}: {error}") from error
    weights = as_numpy(source / WEIGHTS, read_safetensors(source), config.param_dtype)
    return Snapshot(config, 0, weights, tokenizer=read_tokenizer(source))


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write into the empty `folder`."""
    write_json(folder / "config.json", to_dict(without_places(snapshot.config)))
    save_file(snapshot.weights, folder / WEIGHTS)
    write_tokenizer(folder, snapshot.tokenizer)
