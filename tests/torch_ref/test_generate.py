from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.generate_cases import CONFIG
from torch_ref import generate as module
from torch_ref.checkpoint import save
from torch_ref.generate import generate, main, sample_text
from torch_ref.models import load_weights, make_model, weight_shapes
from twinstep.config import Config
from twinstep.data import ByteTokenizer
from twinstep.errors import run_command
from twinstep.generation import NO_TOKEN
from twinstep.init import initial_weights
from twinstep.progress import first_facts
from twinstep.run_dir import create_run, write_run


def make_weighted(config: Config) -> torch.nn.Module:
    model = make_model(config)
    load_weights(model, initial_weights(weight_shapes(model), config.train.seed, config.train.init))
    return model


@pytest.fixture(scope="module")
def gpt():
    return make_weighted(CONFIG)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_trained(tmp_path_factory.mktemp("run") / "gpt", CONFIG)


def write_trained(run: Path, config: Config) -> Path:
    create_run(run)
    write_run(run, config, {})
    save(run, 0, make_weighted(config), [], first_facts(config))
    return run


@torch.no_grad()
def continue_greedily(gpt, prompt, count):
    """Without a cache: the whole text anew for each token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(gpt(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def continue_one(gpt, prompt, count, **options):
    options = {"temperature": 0.0, **options}
    return [int(tokens_B[0]) for tokens_B in generate(gpt, CONFIG, [np.array(prompt)], count, **options)]


def test_greedy_tokens_with_the_cache_are_those_without_it(gpt):
    prompt = np.random.default_rng(0).integers(0, 256, 70)  # longer than one chunk of the prompt
    assert continue_one(gpt, prompt, 60) == continue_greedily(gpt, prompt, 60)


@pytest.mark.parametrize("length", [1, module.PREFILL - 1, module.PREFILL, module.PREFILL + 1, 2 * module.PREFILL])
def test_a_prompt_of_any_length_is_read_whole(gpt, length):
    prompt = np.random.default_rng(length).integers(0, 256, length)
    assert continue_one(gpt, prompt, 3) == continue_greedily(gpt, prompt, 3)


def test_prompts_of_unequal_length_continue_as_each_alone(gpt):
    random = np.random.default_rng(1)
    prompts = [random.integers(0, 256, length) for length in (9, 2, 30)]
    rows = np.array(list(generate(gpt, CONFIG, prompts, 12, temperature=0.0))).T
    for prompt, row in zip(prompts, rows, strict=True):
        assert [t for t in row if t != NO_TOKEN] == continue_one(gpt, prompt, 12)


def test_a_sample_does_not_depend_on_how_many_are_made_beside_it(gpt):
    prompt = np.arange(5)
    several = np.array(list(generate(gpt, CONFIG, [prompt] * 3, 20, temperature=1.0, seed=7)))
    assert several[:, 0].tolist() == continue_one(gpt, prompt, 20, temperature=1.0, seed=7)
    assert len({tuple(row) for row in several.T.tolist()}) == 3


def test_the_seed_decides_the_text(gpt):
    def text(seed):
        return sample_text(gpt, CONFIG, ByteTokenizer(), "def ", 30, 1.0, seed)

    assert text(1) == text(1)
    assert text(1) != text(2)
    assert text(1).startswith("def ")


def test_a_sequence_ends_before_its_stop_token_and_the_others_go_on(gpt):
    prompts = [np.arange(5), np.arange(5, 10)]
    first, second = np.array(list(generate(gpt, CONFIG, prompts, 10, temperature=0.0))).T.tolist()
    stop = next(token for token in first if token not in second)
    end = first.index(stop)
    tokens = np.array(list(generate(gpt, CONFIG, prompts, 10, temperature=0.0, stop_token=stop))).T.tolist()
    assert tokens[0] == first[:end] + [NO_TOKEN] * (10 - end)
    assert tokens[1] == second
    assert continue_one(gpt, np.arange(5), 10, stop_token=stop) == first[:end]


def test_a_stop_token_within_a_prompt_ends_nothing(gpt):
    prompts = [np.array([1]), np.array([1, 2, 3, 2])]
    rows = np.array(list(generate(gpt, CONFIG, prompts, 4, temperature=0.0, stop_token=2))).T
    assert [t for t in rows[1] if t != NO_TOKEN] == continue_one(gpt, prompts[1], 4, stop_token=2)
    assert rows[1, -1] != NO_TOKEN


def printed(capfdbinary, *argv: str) -> bytes:
    assert run_command(main, list(argv)) == 0
    out, err = capfdbinary.readouterr()
    assert err == b""
    return out


def test_the_command_prints_the_prompt_and_its_continuation_only(run, gpt, capfdbinary):
    out = printed(capfdbinary, "--run", str(run), "--prompt", "def f", "--max-tokens", "9", "--temperature", "0")
    tokens = continue_one(gpt, [0xFF, *b"def f"], 9)
    assert out.decode() == "def f" + bytes(token for token in tokens if token != 0xFF).decode(errors="replace")


def test_the_command_begins_a_document_without_a_prompt(run, gpt, capfdbinary):
    out = printed(capfdbinary, "--run", str(run), "--max-tokens", "9", "--temperature", "0")
    assert out.decode() == sample_text(gpt, CONFIG, ByteTokenizer(), "", 9, 0.0, 0)
