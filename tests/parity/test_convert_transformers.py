"""What we write for Hugging Face, read and run by transformers itself; needs the extra `hf`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from parity.formats.snapshot import Snapshot, weight_shapes_of
from tests.helpers.snapshots import assert_same, read, written
from torch_ref.generate import generate, sample_text
from torch_ref.models import load_weights, make_model
from twinstep.config import Config, CorpusConfig, GPTConfig
from twinstep.data import ByteTokenizer
from twinstep.data.tokenizer import BPETokenizer, train_bpe
from twinstep.init import initial_weights
from twinstep.pretrained.safetensors_file import INDEX, WEIGHTS

transformers = pytest.importorskip("transformers", minversion="5.0")

TEXT = "Ein Satz, 世界 and 😀: 1234's more\r\n\tthan  one line.\n"
REAL = Config(
    model=GPTConfig(depth=3, d_model=64, head_dim=16, kv_heads=2, vocab_size=320),
    data=CorpusConfig(sequence_len=96),
)


def make_real(tokenizer: BPETokenizer | None = None) -> tuple[Snapshot, torch.nn.Module]:
    """A model with weights of the size that training gives them, and the same in torch_ref."""
    data = replace(REAL.data, tokenizer="bpe", bpe_vocab_size=tokenizer.vocab_size) if tokenizer else REAL.data
    vocab_size = tokenizer.vocab_size if tokenizer else REAL.model.vocab_size
    config = replace(REAL, data=data, model=replace(REAL.model, vocab_size=vocab_size))
    weights = initial_weights(weight_shapes_of(config), 0, "nonzero")
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    model = make_model(config)
    load_weights(model, weights)
    return Snapshot(config, 0, weights), model


def test_transformers_computes_our_logits(tmp_path):
    snapshot, ours = make_real()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(written(tmp_path / "hf", snapshot, "hf"))
    assert type(theirs).__name__ == "NanoChatForCausalLM"
    assert theirs.dtype == torch.float32
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 320, (3, 96)))
    with torch.no_grad():
        found, expected = theirs.eval()(tokens).logits, ours(tokens)
    assert torch.linalg.norm(found - expected) <= 1e-5 * torch.linalg.norm(expected)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_transformers_generates_our_greedy_text(tmp_path):
    snapshot, ours = make_real()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(written(tmp_path / "hf", snapshot, "hf"))
    prompt = np.random.default_rng(1).integers(0, 255, 10)
    bos = ByteTokenizer.bos
    expected = [int(t[0]) for t in generate(ours, snapshot.config, [prompt], 64, temperature=0.0, stop_token=bos)]
    found = theirs.generate(torch.tensor(prompt)[None], max_new_tokens=64, do_sample=False)[0, len(prompt) :].tolist()
    assert len(found) == 64
    assert len(set(found)) > 8  # not a text that repeats itself
    assert found == expected


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_transformers_reads_our_tokenizer(tmp_path, kind):
    tokenizer = train_bpe([TEXT * 20], 300) if kind == "bpe" else None
    snapshot, _ = make_real(tokenizer)
    if tokenizer is not None:
        tokenizer.save(tmp_path / "tokenizer.json")
        snapshot = snapshot._replace(tokenizer=(tmp_path / "tokenizer.json").read_text())
    folder = written(tmp_path / "hf", snapshot, "hf")
    ours, theirs = tokenizer or ByteTokenizer(), transformers.AutoTokenizer.from_pretrained(folder)
    ids = ours.encode(TEXT).tolist()
    assert theirs(TEXT)["input_ids"] == [ours.bos, *ids]
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == ids
    assert theirs.decode(ids) == theirs.decode([ours.bos, *ids], skip_special_tokens=True) == TEXT
    assert theirs.bos_token_id == theirs.eos_token_id == ours.bos
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == ours.bos

    # What transformers saves is ours again.
    model.save_pretrained(tmp_path / "again", max_shard_size="200KB")
    theirs.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / INDEX).exists()
    found = read(tmp_path / "again", "hf", None)
    assert_same(found, snapshot, optimizer=False)
    assert found.config.data == snapshot.config.data
    if tokenizer is not None:
        again = BPETokenizer(found.tokenizer)
        assert again.encode(TEXT).tolist() == ids
        assert again.identity == BPETokenizer(read(folder, "hf", None).tokenizer).identity == tokenizer.identity


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_prompt_continues_in_transformers_as_it_does_here(tmp_path, kind):
    tokenizer = train_bpe([TEXT * 20], 300) if kind == "bpe" else None
    snapshot, model = make_real(tokenizer)
    if tokenizer is not None:
        tokenizer.save(tmp_path / "tokenizer.json")
        snapshot = snapshot._replace(tokenizer=(tmp_path / "tokenizer.json").read_text())
    folder = written(tmp_path / "hf", snapshot, "hf")
    expected = sample_text(model, snapshot.config, tokenizer or ByteTokenizer(), "Ein Satz", 48, 0.0, 0)

    reader = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = theirs.generate(**reader("Ein Satz", return_tensors="pt"), max_new_tokens=48, do_sample=False)[0]
    assert reader.decode(ids, skip_special_tokens=True) == expected
    assert len(set(expected)) > 8  # not a text that repeats itself


def test_a_model_that_transformers_made_comes_in(tmp_path):
    config = transformers.NanoChatConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        rms_norm_eps=1.1920929e-07,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    theirs = transformers.NanoChatForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    snapshot = read(tmp_path / "hf", "hf", None)
    assert snapshot.config.data.tokenizer == "bpe"
    assert set(load_file(tmp_path / "hf" / WEIGHTS)) == set(theirs.state_dict())
    ours = make_model(snapshot.config)
    load_weights(ours, snapshot.weights)
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 300, (2, 64)))
    with torch.no_grad():
        found, expected = ours(tokens), theirs(tokens).logits
    assert torch.linalg.norm(found - expected) <= 1e-5 * torch.linalg.norm(expected)
