"""--text-key: which key or column holds the text; part of a corpus' identity, recorded, checked at a resume."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import corpora
from twinstep.config import CorpusConfig, from_dict, to_dict
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS
from twinstep.progress import check_config, first_facts, numbers


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("key", ["content", "Text", "a.b", "世界", "id "])
def test_the_text_stands_under_the_key_asked_for(tmp_path, name, key):
    texts = corpora.documents(60)
    data = corpora.load(corpora.write(tmp_path / name, texts, key), text_key=key)
    assert corpora.validation_stream(data) == corpora.stream_of(texts[19::20])
    assert data.summary["text_key"] == key


def test_the_default_key_is_not_in_the_summary(tmp_path):
    assert "text_key" not in corpora.load(corpora.write(tmp_path / "a.jsonl", corpora.documents(60))).summary


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe", "bpe_vocab_size": 300}], ids=["bytes", "bpe"])
def test_two_keys_of_one_file_are_two_corpora_in_the_cache(tmp_path, options):
    texts, others = corpora.documents(60, seed=0), corpora.documents(60, seed=1)
    lines = [json.dumps({"text": text, "other": other}) for text, other in zip(texts, others, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = {**options, "cache_dir": str(tmp_path / "cache")}
    first = corpora.load(tmp_path / "a.jsonl", **options)
    second = corpora.load(tmp_path / "a.jsonl", text_key="other", **options)
    assert first.train.stream.path != second.train.stream.path
    assert first.tokenizer.decode(corpora.validation_stream(first)) == "".join(texts[19::20])
    assert second.tokenizer.decode(corpora.validation_stream(second)) == "".join(others[19::20])
    if options.get("tokenizer") == "bpe":
        assert first.tokenizer.identity != second.tokenizer.identity


def refused(path, says: str, **options) -> None:
    with pytest.raises(UserError, match=says) as error:
        corpora.load(path, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_the_keys_that_a_line_has_are_named(tmp_path):
    path = corpora.write(tmp_path / "a.jsonl", corpora.documents(60), "content")
    refused(path, r'a\.jsonl:1 has no string under "text"; its keys are id, content; pass --text-key')
    refused(path, r'a\.jsonl:1 has no string under "id"; every line needs one', text_key="id")
    path.write_text("{}\n")
    refused(path, r'no string under "text"; its keys are none; pass --text-key')
    path.write_text(json.dumps({f"{n}" + "x" * 1000: 0 for n in range(1000)}))
    refused(path, r"; its keys are 0x{39}\.\.\., .*, 7x{39}\.\.\., \.\.\.; pass --text-key")


def test_the_columns_that_a_table_has_are_named(tmp_path):
    path = corpora.write(tmp_path / "a.parquet", corpora.documents(60), "content")
    refused(path, r'a\.parquet has no one column "text", but id, content; pass --text-key')
    refused(path, r'a\.parquet: column "id" holds int64, not strings; .*pass --text-key', text_key="id")


def test_a_column_with_a_dot_in_its_name_is_not_the_field_of_another(tmp_path):
    texts = corpora.documents(60)
    rows = {"a": [{"b": "of a"}] * 60, "a.b": texts}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    data = corpora.load(tmp_path / "a.parquet", text_key="a.b")
    assert corpora.validation_stream(data) == corpora.stream_of(texts[19::20])


def test_a_key_that_cannot_be_one_is_refused():
    with pytest.raises(UserError, match="--text-key is empty"):
        CorpusConfig(text_key="")
    with pytest.raises(UserError, match="--text-key is not UTF-8 text"):
        CorpusConfig(text_key="\udce9")


def test_a_run_made_before_there_was_a_key_goes_on_with_text(tmp_path):
    config = DEFAULTS["gpt"]
    values = json.loads(json.dumps(to_dict(config)))
    del values["data"]["text_key"]
    assert from_dict(values) == config
    assert "text_key" not in numbers(config)["data"]
    assert "text_key" not in from_dict(json.loads(json.dumps(to_dict(DEFAULTS["linear"])))).data.__dict__


def test_a_checkpoint_of_another_key_is_refused(tmp_path):
    text = DEFAULTS["gpt"]
    content = replace(text, data=replace(text.data, text_key="content"))
    check_config(first_facts(content), content, tmp_path)
    with pytest.raises(UserError, match="has text_key content, but its checkpoint was made with"):
        check_config(first_facts(text), content, tmp_path)
    with pytest.raises(UserError, match="holds a checkpoint of another run"):
        check_config(first_facts(content), text, tmp_path)
