"""A corpus larger than memory: what the data side adds to an idle process, and that it feeds what is in the files.

Peak memory is the kernel's own high-water mark (VmHWM) of a fresh process, in which every import is done first.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

LIMIT = 500  # MiB above the idle process

MEASURE = """
import json, sys
from pathlib import Path
import pyarrow.parquet, tokenizers
from twinstep.config import Config, CorpusConfig, EmbeddingConfig
from twinstep.data import load_data

def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) / 1024

def run(path, cache, tokenizer):
    corpus = CorpusConfig(data=path, sequence_len=256, tokenizer=tokenizer, cache_dir=cache)
    data = load_data(Config(EmbeddingConfig(), corpus))
    for number in range(2000):
        data.train.batch(number)
    for number in range(min(100, data.validation.batches)):
        data.validation.batch(number)
    return data

small, large, cache, tokenizer = sys.argv[1:]
run(small, cache, tokenizer)
idle = peak()
data = run(large, cache, tokenizer)
print(json.dumps({"growth": peak() - idle, "summary": data.summary}))
"""


def write_parquet(path: Path, size: int, row_group_size: int) -> int:
    """About `size` bytes of text in words of a skewed distribution, uncompressed; returns the bytes of text."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(1, 11))) for _ in range(40_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    sentences = [" ".join(draw.choices(words, weights, k=100)) + ".\n" for _ in range(20_000)]
    written = 0
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        while written < size:
            texts = ["".join(draw.choices(sentences, k=5)) for _ in range(row_group_size)]
            writer.write_table(pa.table({"id": [*range(len(texts))], "text": texts}, schema))
            written += sum(map(len, texts))
    return written


def measure(folder: Path, large: Path, tokenizer: str) -> dict:
    small = folder / "small.txt"
    small.write_text("a few words to begin with\n" * 2000)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large), str(folder / "cache"), tokenizer],
        capture_output=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def check(tmp_path: Path, size: int, row_group_size: int, tokenizer: str, limit: float) -> None:
    path = tmp_path / "large.parquet"
    written = write_parquet(path, size, row_group_size)
    assert path.stat().st_size > size
    measured = measure(tmp_path, path, tokenizer)
    summary = measured["summary"]
    assert summary["train"]["bytes"] + summary["validation"]["bytes"] == written
    assert measured["growth"] < limit, measured


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the high-water mark is Linux's")
@pytest.mark.parametrize(
    "tokenizer", [pytest.param("bytes", marks=pytest.mark.slow), pytest.param("bpe", marks=pytest.mark.long)]
)
def test_100_mb_in_one_row_group_take_no_100_mb_of_memory(tmp_path, tokenizer):
    # BPE's own training takes memory that grows with the distinct words, not with the corpus.
    limit = 90 if tokenizer == "bytes" else LIMIT
    check(tmp_path, 100 * 10**6, 40_000, tokenizer, limit)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the high-water mark is Linux's")
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_2_gb_of_parquet_take_less_than_500_mb_of_memory(tmp_path, tokenizer):
    check(tmp_path, 2 * 10**9, 40_000, tokenizer, LIMIT)
