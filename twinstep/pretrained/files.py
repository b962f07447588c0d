"""Reading the small files beside the weights, with one clear line for whatever is wrong with them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinstep.config import Config, CorpusConfig
from twinstep.data import BPETokenizer, ByteTokenizer, load_tokenizer
from twinstep.data.tokenizer import BYTE_OF, CHAT_TOKENS, SPECIAL_TOKENS, Special
from twinstep.errors import UserError
from twinstep.run_dir import TOKENIZER


def read_json(path: Path) -> dict[str, Any]:
    """An object. Raises UserError if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; copy the whole folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; copy or save it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; copy or save it again")
    return values


def read_tokenizer(folder: Path) -> str | None:
    """The text of a folder's tokenizer.json, None if it has none. Raises UserError if it is not one of ours."""
    path = folder / TOKENIZER
    return load_tokenizer(path).text if path.exists() else None


def byte_tokenizer(text: str) -> ByteTokenizer | None:
    """The byte tokenizer that a tokenizer.json describes, every byte its own token; None if it is a BPE."""
    vocab = json.loads(text)["model"].get("vocab")
    plain = {character: byte for character, byte in BYTE_OF.items() if byte != ByteTokenizer.bos}
    known = (ByteTokenizer(special_tokens) for special_tokens in SPECIAL_TOKENS)
    return next((tokenizer for tokenizer in known if vocab == plain | tokenizer.special), None)


def with_tokenizer(config: Config, text: str | None) -> Config:
    """The configuration with the tokenizer whose tokenizer.json this is; as it is for None."""
    if text is None or not isinstance(config.data, CorpusConfig):
        return config
    plain = byte_tokenizer(text)
    tokenizer = plain or BPETokenizer(text)
    special: Special = "chat" if all(name in tokenizer.special for name in CHAT_TOKENS) else "none"
    data = replace(config.data, tokenizer="bytes" if plain else "bpe", special_tokens=special)
    return replace(config, data=data if plain else replace(data, bpe_vocab_size=tokenizer.vocab_size))
