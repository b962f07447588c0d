"""Small corpora in every format, configurations for them, and the stream that they should become."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twinstep.config import Config, CorpusConfig, EmbeddingConfig, TrainConfig
from twinstep.data import Data, load_data

ALPHABET = "abcdefgh ABC 0123 .,;\n\té世界🙂ßñ"


def documents(count: int, length: int = 120, seed: int = 0) -> list[str]:
    """Texts that differ, some empty, with characters of one to four bytes."""
    draw = random.Random(seed)
    texts = [f"<{i}>" + "".join(draw.choices(ALPHABET, k=draw.randrange(length, 2 * length))) for i in range(count)]
    texts[count // 2] = ""
    return texts


def write(path: Path, texts: list[str], key: str = "text") -> Path:
    """One folder of .txt files, or one .jsonl, .jsonl.gz or .parquet file, by the path's suffix."""
    lines = "".join(json.dumps({"id": i, key: t}) + "\n" for i, t in enumerate(texts))
    if path.suffix == ".jsonl":
        path.write_text(lines)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        table = pa.table({"id": list(range(len(texts))), key: texts})
        pq.write_table(table, path, row_group_size=7)
    else:
        path.mkdir()
        for i, text in enumerate(texts):
            (path / f"{i:04d}.txt").write_bytes(text.encode())
    return path


def config(path: Path | None, batch_size: int = 4, accumulation: int = 1, seed: int = 0, **corpus) -> Config:
    """An embedding model's run on a corpus with sequences of 16 tokens."""
    corpus = {"sequence_len": 16, **corpus}
    return Config(
        model=EmbeddingConfig(),
        data=CorpusConfig(data=None if path is None else str(path), **corpus),
        train=TrainConfig(batch_size=batch_size, accumulation=accumulation, seed=seed),
    )


def load(path: Path | None, **options) -> Data:
    return load_data(config(path, **options))


def stream_of(texts: list[str]) -> list[int]:
    """Byte tokens of documents, each after its BOS token: built here by other means than the loader's."""
    ids: list[int] = []
    for text in texts:
        ids.append(255)
        ids.extend(text.encode("utf-8"))
    return ids


def validation_stream(data: Data) -> list[int]:
    """The whole validation stream put together again from its batches."""
    batches = [data.validation.batch(number) for number in range(data.validation.batches)]
    tokens = np.concatenate([batch["tokens"].ravel() for batch in batches])
    targets = np.concatenate([batch["targets"].ravel() for batch in batches])
    real = targets >= 0
    return [int(tokens[0]), *targets[real].tolist()]


def training_rows(data: Data, epoch: int = 0) -> list[tuple[int, ...]]:
    """tokens and the last target of every training row of an epoch, sorted."""
    rows = []
    for number in range(epoch * data.train.batches, (epoch + 1) * data.train.batches):
        batch = data.train.batch(number)
        tokens = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
        targets = batch["targets"].reshape(tokens.shape)
        assert (tokens[:, 1:] == targets[:, :-1]).all()
        rows += [(*t.tolist(), int(last)) for t, last in zip(tokens, targets[:, -1], strict=True)]
    return sorted(rows)
