"""A chat model for Hugging Face: transformers' own template gives our ids, and marks what we learn."""

from dataclasses import replace

import pytest
import torch

from tests.helpers import dialogues
from tests.helpers.snapshots import GPT, assert_same, make_snapshot, read, written
from twinstep.data import ByteTokenizer
from twinstep.data.chat import ASSISTANT_END, ASSISTANT_START, encode_spans, render
from twinstep.data.tokenizer import CHAT_TOKENS, train_bpe

transformers = pytest.importorskip("transformers", minversion="5.0")
FOUND = dialogues.conversations(60)
TEXTS = [text for messages in FOUND for text in map(str, messages)]


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def exported(request, tmp_path_factory):
    """Our tokenizer, the snapshot, and the folder that it was written to."""
    place = tmp_path_factory.mktemp("hf")
    tokenizer = ByteTokenizer("chat") if request.param == "bytes" else train_bpe(TEXTS, 380, "chat")
    data = replace(GPT.data, tokenizer=request.param, special_tokens="chat", bpe_vocab_size=380)
    model = replace(GPT.model, vocab_size=tokenizer.vocab_size)
    snapshot = make_snapshot(replace(GPT, data=data, model=model), 0)
    if request.param == "bpe":
        tokenizer.save(place / "tokenizer.json")
        snapshot = snapshot._replace(tokenizer=(place / "tokenizer.json").read_text())
    return tokenizer, snapshot, written(place / "hf", snapshot, "hf")


def test_transformers_renders_our_ids_and_marks_what_we_learn(exported):
    tokenizer, _, folder = exported
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = encode_spans([render(messages) for messages in FOUND], tokenizer)
    for messages, (ids, learned) in zip(FOUND, ours, strict=True):
        found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert found["input_ids"] == ids.tolist()
        assert found["assistant_masks"] == learned.astype(int).tolist()


def test_a_prompt_ends_where_the_assistant_begins(exported):
    tokenizer, _, folder = exported
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "one"}]
    found = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    whole = [*messages, {"role": "assistant", "content": "two"}]
    ((ids, _),) = encode_spans([render(whole)], tokenizer)
    assert found == ids.tolist()[: len(found)]
    assert found[-1] == tokenizer.special[ASSISTANT_START]


def test_transformers_ends_where_the_assistant_does(exported):
    """A model that always says <|assistant_end|>: transformers ends there, and not after `max_new_tokens`."""
    tokenizer, _, folder = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    end = tokenizer.special[ASSISTANT_END]
    assert theirs.generation_config.eos_token_id == [tokenizer.bos, end]
    prompt = torch.tensor([[tokenizer.bos, 5, 6]])
    made = theirs.generate(
        prompt, max_new_tokens=9, do_sample=False, logits_processor=[lambda ids, logits: always(logits, end)]
    )
    assert made[0, 3:].tolist() == [end]


def always(logits, token):
    return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


def test_a_system_message_in_the_middle_is_refused_there_too(exported):
    theirs = transformers.AutoTokenizer.from_pretrained(exported[2])
    messages = [*FOUND[0], {"role": "system", "content": "late"}]
    with pytest.raises(Exception, match="a system message may only come first"):
        theirs.apply_chat_template(messages)


def test_the_special_tokens_come_back(exported):
    tokenizer, snapshot, folder = exported
    found = read(folder, "hf", None)
    assert_same(found, snapshot, optimizer=False)
    expected = snapshot.config.data
    assert (found.config.data.tokenizer, found.config.data.special_tokens) == (expected.tokenizer, "chat")
    assert found.tokenizer == snapshot.tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert [theirs.convert_tokens_to_ids(name) for name in CHAT_TOKENS] == [tokenizer.special[n] for n in CHAT_TOKENS]


def test_a_model_without_the_special_tokens_has_no_template(tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(written(tmp_path / "hf", make_snapshot(GPT, 0), "hf"))
    assert theirs.chat_template is None
