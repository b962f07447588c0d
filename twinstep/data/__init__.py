"""Corpora, tables and tokenizers as one deterministic stream of batches that both trainers read.

`load_data(config)` gives the training and the validation batches of a run, by number; see `interface.py`.
"""

from pathlib import Path

from twinstep.config import Config, CorpusConfig, EmbeddingConfig, GPTConfig
from twinstep.data.corpus import load_corpus
from twinstep.data.dialogues import load_dialogues
from twinstep.data.interface import Batch, BatchSource, Data
from twinstep.data.tabular import load_table
from twinstep.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer
from twinstep.errors import UserError

__all__ = [
    "BPETokenizer",
    "Batch",
    "BatchSource",
    "ByteTokenizer",
    "Data",
    "Tokenizer",
    "load_data",
    "load_tokenizer",
]


def load_data(config: Config, tokenizer_path: Path | None = None) -> Data:
    """The data of a run. With `tokenizer_path`, a run's tokenizer.json, no BPE is trained.

    Raises UserError for whatever is wrong with the files, the tokenizer, or the sizes asked for.
    """
    if isinstance(config.data, CorpusConfig) != isinstance(config.model, GPTConfig | EmbeddingConfig):
        kind = "text" if isinstance(config.data, CorpusConfig) else "a table"
        raise UserError(f"{config.model_name} cannot be trained on {kind}; choose another model")
    if isinstance(config.data, CorpusConfig):
        load = load_dialogues if config.data.chat else load_corpus
        data = load(config, config.data, tokenizer_path)
    else:
        data = load_table(config, config.data)
    _check_model(config, data)
    return data


def _check_model(config: Config, data: Data) -> None:
    """Sizes given for the model must fit the data: a framework may clamp an index out of range in silence."""
    model = config.model
    if isinstance(model, GPTConfig | EmbeddingConfig):
        assert data.tokenizer is not None
        if model.vocab_size is not None and model.vocab_size < data.tokenizer.vocab_size:
            raise UserError(
                f"--vocab-size is {model.vocab_size}, the tokenizer has {data.tokenizer.vocab_size} tokens; "
                "raise it or leave it out"
            )
        return
    for name, given, found in (
        ("features", model.features, data.features),
        ("classes", model.classes, data.classes),
    ):
        if given not in (None, found):
            raise UserError(f"--{name} is {given}, the data has {found}; leave it out")
