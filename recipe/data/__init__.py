"""Corpora, tables and tokenizers as one deterministic stream of batches that both trainers read.

`load_data(config)` gives the training and the validation batches of a run, by number; see `interface.py`.
"""

from pathlib import Path

from recipe.config import Config, CorpusConfig
from recipe.data.corpus import load_corpus
from recipe.data.interface import Batch, BatchSource, Data
from recipe.data.tabular import load_table
from recipe.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer

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
    if isinstance(config.data, CorpusConfig):
        return load_corpus(config, config.data, tokenizer_path)
    return load_table(config, config.data)
