"""A folder of `model.safetensors`, names as in torch, and our `config.json`: weights without a training's state."""

from pathlib import Path

from safetensors.numpy import save_file

from parity.formats.files import write_json, write_tokenizer
from parity.formats.snapshot import Snapshot, without_places
from twinstep.config import to_dict
from twinstep.pretrained import safetensors_folder
from twinstep.pretrained.files import read_tokenizer
from twinstep.pretrained.safetensors_file import WEIGHTS


def read(source: Path) -> Snapshot:
    """Raises UserError if a file is missing or damaged."""
    config = safetensors_folder.read_config(source)
    return Snapshot(config, 0, safetensors_folder.read_weights(source), tokenizer=read_tokenizer(source))


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write into the empty `folder`."""
    write_json(folder / "config.json", to_dict(without_places(snapshot.config)))
    save_file(snapshot.weights, folder / WEIGHTS)
    write_tokenizer(folder, snapshot.tokenizer)
