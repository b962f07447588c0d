"""Tokenizers in the form of Hugging Face's, so that AutoTokenizer.from_pretrained reads them.

Our BPE is already a tokenizer.json. Bytes become one too: every byte its own token, and no pairs to join; 0xFF, which
no text holds, is the BOS token. Both put the BOS token before a text, as training and `generate` do: in the file that
is a post-processor, which reading takes off again, so that a tokenizer comes back as the same text.
"""

import json
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from parity.formats import files
from twinstep.config import Config, CorpusConfig
from twinstep.data import BPETokenizer, ByteTokenizer
from twinstep.data.tokenizer import BOS, BYTE_OF


def write_tokenizer(folder: Path, config: Config, text: str | None) -> int | None:
    """Write tokenizer.json and tokenizer_config.json; returns the BOS token's id, None without a tokenizer."""
    assert isinstance(config.data, CorpusConfig)
    if config.data.tokenizer == "bytes":
        text = byte_tokenizer_json()
    if text is None:
        return None
    files.write_tokenizer(folder, with_bos(text))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.data.sequence_len,
    }
    files.write_json(folder / "tokenizer_config.json", settings)
    return BPETokenizer(text).bos


def read_tokenizer(folder: Path) -> tuple[Literal["bytes", "bpe"], str | None]:
    """Which tokenizer a folder has, and its text where that is no plain bytes."""
    text = files.read_tokenizer(folder)
    if text is None:
        return "bpe", None
    return ("bytes", None) if is_bytes(text) else ("bpe", without_bos(text))


def with_bos(text: str) -> str:
    """A tokenizer.json that puts the BOS token before each text."""
    bpe = Tokenizer.from_str(text)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return str(bpe.to_str())


def without_bos(text: str) -> str:
    """The inverse of `with_bos`; a tokenizer that puts no BOS token there is returned as it is."""
    bpe = Tokenizer.from_str(text)
    if bpe.encode("").ids != [bpe.token_to_id(BOS)]:
        return text
    bpe.post_processor = None
    return str(bpe.to_str())


def is_bytes(text: str) -> bool:
    """Whether a tokenizer.json is that of plain bytes, as we or transformers wrote it."""
    vocab = json.loads(text)["model"].get("vocab")
    return vocab == json.loads(byte_tokenizer_json())["model"]["vocab"] and BPETokenizer(text).bos == ByteTokenizer.bos


def byte_tokenizer_json() -> str:
    """A tokenizer.json with the ids of `ByteTokenizer`."""
    vocab = {character: byte for character, byte in BYTE_OF.items() if byte != ByteTokenizer.bos}
    bpe = Tokenizer(models.BPE(vocab={**vocab, BOS: ByteTokenizer.bos}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(BOS, normalized=False, special=True)])
    return bpe.to_str()
