"""Reading models, in Python and NumPy: what both trainers start from, and what `parity convert` reads.

    run          a run directory; its checkpoints belong to the framework that wrote them
    safetensors  model.safetensors and our config.json
    hf           what transformers reads as its NanoChat model
    nanochat     model_NNNNNN.pt and meta_NNNNNN.json of karpathy/nanochat, November 2025

Nothing here runs code that a file holds.
"""

from pathlib import Path

from twinstep.config import Config
from twinstep.errors import UserError
from twinstep.pretrained import huggingface, nanochat, safetensors_folder
from twinstep.pretrained.files import read_json, read_tokenizer, with_tokenizer
from twinstep.run_dir import CHECKPOINTS

__all__ = ["detect", "read_config"]


def detect(source: Path) -> str:
    """The format of a folder. Raises UserError if it is none of ours."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; pass the folder that holds the model")
    if (source / CHECKPOINTS).is_dir():
        return "run"
    if nanochat.model_files(source):
        return "nanochat"
    if (source / "config.json").exists():
        return "hf" if "model_type" in read_json(source / "config.json") else "safetensors"
    raise UserError(
        f"{source} holds neither checkpoints/, model_NNNNNN.pt nor config.json; "
        "pass the folder of a run, of a nanochat checkpoint, or of a Hugging Face model"
    )


def read_config(source: Path) -> Config:
    """The configuration of a folder's model, with its tokenizer. Raises UserError if it is none of ours, or damaged."""
    match detect(source):
        case "hf":
            return huggingface.read_config(source)
        case "nanochat":
            return nanochat.read_config(source)
        case _:  # a run has the same config.json
            return with_tokenizer(safetensors_folder.read_config(source), read_tokenizer(source))
