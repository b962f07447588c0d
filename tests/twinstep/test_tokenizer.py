"""Tokenizers: lossless, with the right counts of bytes, strict about their files."""

import json

import numpy as np
import pytest

from tests.helpers import corpora
from twinstep.data import BPETokenizer, ByteTokenizer, load_tokenizer
from twinstep.data.tokenizer import BYTE_OF, train_bpe
from twinstep.errors import UserError

TEXTS = [
    "",
    "plain ASCII, with 12345 numbers and it's quotes\n\n\ttabs  ",
    "äöü ß é e\u0301 ﬁ Å",
    "世界 你好 мир עולם",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 emoji",
    "\x00\x01\x7f control \r\n \r line ends \u2028",
    "a text that quotes <|bos|> and <|end|>",
    " \ufeff \U0010ffff ",
]


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return train_bpe(corpora.documents(40, 400), 400)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, bpe):
    return ByteTokenizer() if request.param == "bytes" else bpe


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back_to_the_byte(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.to_bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos not in ids


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_the_tokens_add_up_to_the_utf8_length(tokenizer, text):
    assert tokenizer.token_bytes.dtype == np.int32
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.token_bytes[tokenizer.bos] == 0
    assert (np.delete(tokenizer.token_bytes, tokenizer.bos) > 0).all()


def test_many_texts_are_encoded_like_one_by_one(tokenizer):
    for one, many in zip(TEXTS, tokenizer.encode_many(TEXTS), strict=True):
        np.testing.assert_array_equal(tokenizer.encode(one), many)


def test_special_tokens_and_ids_beyond_the_vocabulary_stand_for_no_text(tokenizer):
    ids = [tokenizer.bos, *tokenizer.encode("é"), tokenizer.bos, tokenizer.vocab_size, 10**6]
    assert tokenizer.decode(ids) == "é"
    with pytest.raises(ValueError, match="-1"):
        tokenizer.decode([-1])


def test_half_a_character_decodes_to_a_replacement(tokenizer):
    ids = [
        id
        for byte in "é".encode()[:1]
        for id in range(tokenizer.vocab_size)
        if tokenizer.to_bytes([id]) == bytes([byte])
    ]
    assert tokenizer.decode(ids) == "\ufffd"


def test_byte_tokens_are_utf8_bytes_and_the_bos_token_is_none_of_them():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 256
    assert tokenizer.bos == 0xFF
    assert tokenizer.encode("aé").tolist() == [0x61, 0xC3, 0xA9]


def test_the_printable_bytes_are_those_of_the_library(bpe):
    for byte in range(128):  # ASCII characters are one byte, and one token unless joined
        (id,) = bpe.encode(chr(byte))
        assert bpe.to_bytes([id]) == bytes([byte])
    assert sorted(BYTE_OF.values()) == list(range(256))


def test_bpe_joins_what_is_frequent(bpe):
    assert bpe.vocab_size == 400
    text = corpora.documents(1, 400)[0] or corpora.documents(4, 400)[1]
    assert len(bpe.encode(text)) < 0.9 * len(text.encode())


def test_training_twice_gives_the_same_file(tmp_path, bpe):
    again = train_bpe(iter(corpora.documents(40, 400)), 400)
    bpe.save(tmp_path / "one.json")
    again.save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"one.json", "two.json"}


def test_a_saved_tokenizer_loads_as_the_same(tmp_path, bpe):
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    loaded = load_tokenizer(path)
    assert loaded.identity == bpe.identity
    assert loaded.bos == bpe.bos
    np.testing.assert_array_equal(loaded.token_bytes, bpe.token_bytes)
    for text in TEXTS:
        np.testing.assert_array_equal(loaded.encode(text), bpe.encode(text))


def test_a_byte_tokenizer_writes_no_file(tmp_path):
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_of_bytes_and_bos_token_alone_joins_nothing():
    tokenizer = train_bpe(["aaaa bbbb"], 257)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode("aaaa bbbb")) == 9


def test_few_words_are_exhausted_and_many_are_not():
    texts = ["one two one two", "three\n"]
    small = train_bpe(texts, 1000)
    assert small.vocab_size < 1000
    assert small.exhausts(texts)
    assert not small.exhausts([*texts, "four"])
    assert not train_bpe(texts, small.vocab_size - 1).exhausts(texts)


def spec_of(bpe: BPETokenizer, tmp_path) -> dict:
    bpe.save(tmp_path / "good.json")
    return json.loads((tmp_path / "good.json").read_text())


def without_bos(spec):
    spec["added_tokens"] = []


def with_gap(spec):
    vocab = spec["model"]["vocab"]
    vocab[max(vocab, key=vocab.get)] += 1


def with_text_tokens(spec):
    spec["model"]["vocab"]["two words"] = len(spec["model"]["vocab"])


def with_normalizer(spec):
    spec["normalizer"] = {"type": "NFC"}


def lowercased(spec):
    spec["normalizer"] = {"type": "Lowercase"}


def with_space_before(spec):
    spec["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def without_byte_level(spec):
    spec["pre_tokenizer"] = {"type": "Whitespace"}


def unigram(spec):
    spec["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<|bos|>", 0.0], ["a", -1.0]]}


@pytest.mark.parametrize(
    "damage",
    [
        without_bos,
        with_gap,
        with_text_tokens,
        with_normalizer,
        lowercased,
        with_space_before,
        without_byte_level,
        unigram,
    ],
)
def test_a_foreign_tokenizer_is_refused_in_one_line(tmp_path, bpe, damage):
    spec = spec_of(bpe, tmp_path)
    damage(spec)
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"foreign\.json: .*; restore") as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff\xfe", b"null"])
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_tokenizer_is_refused(tmp_path, bpe, share):
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(path)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: No such file"):
        load_tokenizer(tmp_path / "nowhere.json")
