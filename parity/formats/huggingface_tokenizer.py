"""Tokenizers in the form of Hugging Face's, so that AutoTokenizer.from_pretrained reads them.

Our BPE is already a tokenizer.json. Bytes become one too: every byte its own token, and no pairs to join; 0xFF, which
no text holds, is the BOS token. Both put the BOS token before a text, as training and `generate` do: in the file that
is a post-processor, which `twinstep.data.load_tokenizer` takes off again. Where a tokenizer has the special tokens of
dialogues, our template of these goes along.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from parity.formats import files
from parity.formats.chat_template import CHAT_TEMPLATE
from twinstep.config import Config, CorpusConfig
from twinstep.data import BPETokenizer, ByteTokenizer
from twinstep.data.tokenizer import BOS, BYTE_OF, CHAT_TOKENS, Special


def write_tokenizer(folder: Path, config: Config, text: str | None) -> BPETokenizer | None:
    """Write tokenizer.json and tokenizer_config.json; returns what they hold, None without a tokenizer."""
    assert isinstance(config.data, CorpusConfig)
    if config.data.tokenizer == "bytes":
        text = byte_tokenizer_json(config.data.special_tokens)
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
    tokenizer = BPETokenizer(text)
    if all(name in tokenizer.special for name in CHAT_TOKENS):
        settings["chat_template"] = CHAT_TEMPLATE
    files.write_json(folder / "tokenizer_config.json", settings)
    return tokenizer


def with_bos(text: str) -> str:
    """A tokenizer.json that puts the BOS token before each text."""
    bpe = Tokenizer.from_str(text)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return str(bpe.to_str())


def byte_tokenizer_json(special_tokens: Special) -> str:
    """A tokenizer.json with the ids of `ByteTokenizer`."""
    vocab = {character: byte for character, byte in BYTE_OF.items() if byte != ByteTokenizer.bos}
    special = ByteTokenizer(special_tokens).special
    bpe = Tokenizer(models.BPE(vocab={**vocab, **special}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    return bpe.to_str()
