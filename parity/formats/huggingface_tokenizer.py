"""Tokenizers in the form of Hugging Face's, so that AutoTokenizer.from_pretrained reads them.

Our BPE is already a tokenizer.json. Bytes become one too: every byte its own token, and no pairs to join; 0xFF, which
no text holds, is the BOS token.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

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
    files.write_tokenizer(folder, text)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.data.sequence_len,
    }
    files.write_json(folder / "tokenizer_config.json", settings)
    return BPETokenizer(text).bos


def byte_tokenizer_json() -> str:
    """A tokenizer.json with the ids of `ByteTokenizer`."""
    vocab = {character: byte for character, byte in BYTE_OF.items() if byte != ByteTokenizer.bos}
    bpe = Tokenizer(models.BPE(vocab={**vocab, BOS: ByteTokenizer.bos}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(BOS, normalized=False, special=True)])
    return bpe.to_str()
