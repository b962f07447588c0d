"""Dialogues from files to batches: what is trained on, in which order, and what is refused."""

import gzip
import json
import re
from itertools import pairwise

import numpy as np
import pytest

from tests.helpers import dialogues
from twinstep.config import Config, CorpusConfig, EmbeddingConfig
from twinstep.data import load_data
from twinstep.data.chat import encode_spans, render
from twinstep.errors import UserError

FOUND = dialogues.conversations(200)


@pytest.fixture
def path(tmp_path):
    return dialogues.write(tmp_path / "dialogues.jsonl", FOUND)


def load(path, **options):
    return load_data(dialogues.config(path, **options))


def held_in(source, bos: int, numbers) -> list[tuple[list[int], list[bool]]]:
    """The conversations in batches, cut at BOS tokens, without the padding: ids and what is a target, each sorted."""
    found = []
    for number in numbers:
        batch = source.batch(number)
        shape = (-1, batch["tokens"].shape[-1])
        for tokens, targets in zip(batch["tokens"].reshape(shape), batch["targets"].reshape(shape), strict=True):
            real = targets >= 0
            np.testing.assert_array_equal(targets[:-1][real[:-1]], tokens[1:][real[:-1]])
            # The row's last id is its last target; where that is none, it is padding.
            ids = [*tokens.tolist(), int(targets[-1]) if real[-1] else bos]
            learned = [False, *real.tolist()]
            starts = [at for at, id in enumerate(ids) if id == bos] + [len(ids)]
            found += [(ids[a:b], learned[a:b]) for a, b in pairwise(starts) if b - a > 1]
    return sorted(found)


def expected(messages, tokenizer) -> list[tuple[list[int], list[bool]]]:
    rendered = encode_spans([render(one) for one in messages], tokenizer)
    return sorted((ids.tolist(), learned.tolist()) for ids, learned in rendered)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_every_conversation_is_seen_whole_once_in_an_epoch_and_every_20th_is_held_out(path, tokenizer):
    data = load(path, tokenizer=tokenizer, bpe_vocab_size=300, sequence_len=511, batch_size=1)
    for epoch in (0, 1):
        numbers = range(epoch * data.train.batches, (epoch + 1) * data.train.batches)
        found = held_in(data.train, data.tokenizer.bos, numbers)
        assert found == expected([m for n, m in enumerate(FOUND) if n % 20 != 19], data.tokenizer)
    held_out = held_in(data.validation, data.tokenizer.bos, range(data.validation.batches))
    assert held_out == expected(FOUND[19::20], data.tokenizer)
    assert data.summary["train"]["conversations"] == 190
    assert data.summary["validation"]["conversations"] == 10


def test_each_epoch_has_another_order_of_the_same_rows(path):
    train = load(path).train
    epochs = [
        np.concatenate([train.batch(e * train.batches + n)["tokens"][0] for n in range(train.batches)]).tolist()
        for e in (0, 1)
    ]
    assert epochs[0] != epochs[1]
    rows = set(map(tuple, train.conversations.read_rows(np.arange(train.examples))["tokens"].tolist()))
    for epoch in epochs:
        assert set(map(tuple, epoch)) <= rows
        assert len(set(map(tuple, epoch))) == train.batches * 4


def test_shards_put_together_are_the_global_batch(path):
    data = load(path, batch_size=8, accumulation=2)
    for number in (0, 3, data.train.batches + 1):
        whole = data.train.batch(number)
        parts = [data.train.batch(number, shard, 4) for shard in range(4)]
        for name, array in whole.items():
            assert array.shape == (2, 4, 64)
            assert array.dtype == np.int32
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], axis=1), array)
    whole = data.validation.batch(data.validation.batches - 1)
    parts = [data.validation.batch(data.validation.batches - 1, shard, 4) for shard in range(4)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_the_same_lines_give_the_same_batches_again_and_another_seed_others(path, tmp_path):
    one, again, other = (load(path, seed=seed).train.batch(2) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one["tokens"], again["tokens"])
    assert not np.array_equal(one["tokens"], other["tokens"])
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    unpacked = load(packed, seed=3).train.batch(2)
    np.testing.assert_array_equal(one["tokens"], unpacked["tokens"])
    np.testing.assert_array_equal(one["targets"], unpacked["targets"])


def test_a_row_is_filled_up_with_bos_tokens_that_are_no_targets(path):
    data = load(path, sequence_len=511)
    rows = data.train.conversations.read_rows(np.array([0, data.train.examples]))  # the second is past the last
    assert (rows["tokens"][1] == data.tokenizer.bos).all()
    assert (rows["targets"][1] == -1).all()


def test_bytes_per_target_are_those_of_the_assistants_text(path):
    data = load(path)
    for number in range(data.validation.batches):
        batch = data.validation.batch(number)
        targets, found = batch["targets"], batch["target_bytes"]
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, (targets >= 0) & (targets < 255))
    learned = [
        part if isinstance(part, str) else part["text"]
        for messages in FOUND[19::20]
        for message in messages
        if message["role"] == "assistant"
        for part in ([message["content"]] if isinstance(message["content"], str) else message["content"])
        if isinstance(part, str) or part["type"] != "python_output"
    ]
    assert b"".join(data.validation_text()) == "".join(learned).encode()
    assert data.summary["validation"]["bytes"] == len("".join(learned).encode())
    assert data.validation_gzip_bits_per_byte() > 0


def test_a_conversation_longer_than_a_sequence_is_cut_there_and_that_is_said(path):
    data = load(path, sequence_len=64)
    lengths = [len(ids) for ids, _ in expected(FOUND, data.tokenizer)]
    cut = sum(length > 65 for length in lengths)
    assert cut > 0
    assert re.fullmatch(rf"packed: 190 conversations into \d+ sequences; {cut} are longer .* cut there", data.note)
    assert "longer" not in load(path, sequence_len=1024).note


def test_tokenized_once_and_another_template_or_tokenizer_is_another_entry(path, tmp_path):
    cache = tmp_path / "cache"
    first = load(path, cache_dir=str(cache)).train.conversations.stream
    before = first.path.stat().st_mtime_ns
    assert load(path, cache_dir=str(cache), sequence_len=32).train.conversations.stream == first
    assert first.path.stat().st_mtime_ns == before
    other = load(path, cache_dir=str(cache), tokenizer="bpe", bpe_vocab_size=300).train.conversations.stream
    assert other.path != first.path


def test_bpe_is_trained_on_the_training_conversations_and_kept(path, tmp_path):
    options = {"tokenizer": "bpe", "bpe_vocab_size": 300}
    first = load(path, **options)
    assert first.tokenizer.vocab_size == 300
    first.tokenizer.save(tmp_path / "tokenizer.json")
    again = load_data(dialogues.config(path, **options), tmp_path / "tokenizer.json")
    assert again.tokenizer.identity == first.tokenizer.identity
    np.testing.assert_array_equal(again.train.batch(1)["tokens"], first.train.batch(1)["tokens"])


def refused(path, says, **options):
    with pytest.raises(UserError) as error:
        load(path, **options)
    assert re.search(says, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "is not JSON"),
        ('{"text": "a"}', 'has no list of messages under "messages"; mend or delete the line'),
        ("[]", 'has no list of messages under "messages"'),
        (json.dumps({"messages": [{"role": "user", "content": ""}]}), "has an empty string as the content of"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, says):
    path = dialogues.write(tmp_path / "dialogues.jsonl", FOUND[:30])
    path.write_text(path.read_text() + "\n" + line + "\n" + path.read_text())
    refused(path, rf"dialogues\.jsonl:32 {says}")


def test_files_of_another_kind_are_refused_by_name(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.txt").write_text("text")
    refused(tmp_path, r"b\.txt holds no dialogues; --chat reads \.jsonl \.jsonl\.gz only")


def test_too_few_conversations_are_refused_with_their_number(tmp_path):
    refused(dialogues.write(tmp_path / "a.jsonl", FOUND[:19]), r"holds 19 conversations; 20 or more are needed")
    (tmp_path / "b.jsonl").write_text("")
    refused(tmp_path / "b.jsonl", r"holds 0 conversations")
    few = dialogues.write(tmp_path / "c.jsonl", FOUND[:20])
    refused(few, r"19 training conversations, which fill \d+ sequences; --batch-size 500 needs more", batch_size=500)


def test_a_sequence_too_short_for_the_assistant_is_refused(path):
    refused(path, "--sequence-len 2 cuts every conversation before the assistant speaks; raise it", sequence_len=2)


def test_a_tokenizer_without_the_special_tokens_is_refused(path, tmp_path):
    refused(path, r"<\|user_start\|>, which the tokenizer bytes does not have", special_tokens="none")
    options = {"tokenizer": "bpe", "bpe_vocab_size": 300, "special_tokens": "none"}
    refused(path, r"<\|user_start\|>, which the tokenizer bpe does not have", **options)


def test_flags_that_contradict_dialogues_are_refused():
    with pytest.raises(UserError, match="leave --masked-targets out"):
        CorpusConfig(chat=True, data="a.jsonl", masked_targets=0.5)
    with pytest.raises(UserError, match="--chat needs dialogues; pass --data"):
        load_data(Config(EmbeddingConfig(), CorpusConfig(chat=True)))
    with pytest.raises(UserError, match="--bpe-vocab-size is 264; with --special-tokens chat it must be at least 265"):
        CorpusConfig(tokenizer="bpe", bpe_vocab_size=264, special_tokens="chat")
    assert CorpusConfig(tokenizer="bpe", bpe_vocab_size=265, special_tokens="chat").bpe_vocab_size == 265
