import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_impl import decoding
from jax_impl.checkpoint import open_manager, save
from jax_impl.decoding import PREFILL, generate_in_chunks
from jax_impl.generate import generate, main, sample_text
from jax_impl.models import load_tree, make_model
from jax_impl.models.cache import make_cache
from jax_impl.optimizer import make_optimizer
from jax_impl.step import init_state
from jax_impl.tree import flatten
from tests.helpers.generate_cases import CONFIG
from tests.helpers.jaxprs import times_compiled
from twinstep.config import Config
from twinstep.data import ByteTokenizer
from twinstep.errors import run_command
from twinstep.generation import NO_TOKEN
from twinstep.init import initial_weights
from twinstep.progress import first_facts
from twinstep.run_dir import create_run, write_run


@pytest.fixture(scope="module")
def gpt():
    model = make_model(CONFIG)
    shapes = {name: leaf.shape for name, leaf in flatten(model.params).items()}
    return model, load_tree(model.params, initial_weights(shapes, 3, "nonzero"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_trained(tmp_path_factory.mktemp("run") / "gpt", CONFIG)


def write_trained(run: Path, config: Config) -> Path:
    model = make_model(config)
    shapes = {name: leaf.shape for name, leaf in {**flatten(model.params), **flatten(model.buffers)}.items()}
    weights = initial_weights(shapes, config.train.seed, config.train.init)
    create_run(run)
    write_run(run, config, {})
    with open_manager(run) as manager:
        save(manager, init_state(model, make_optimizer(config, model.params), weights, 0), first_facts(config))
    return run


@pytest.fixture(scope="module")
def greedily(gpt):
    """Continues a prompt without a cache: the whole text anew for each token."""
    model, params = gpt
    forward = jax.jit(lambda tokens_BT: model.bind(params, {}, train=False)(tokens_BT))

    def greedily(prompt, count):
        tokens = list(prompt)
        for _ in range(count):
            # Padding on the right cannot be seen from the left: one compiled length serves all tests.
            padded = np.array(tokens + [0] * (2 * PREFILL + 4 - len(tokens)), np.int32)
            tokens.append(int(forward(padded[None])[0, len(tokens) - 1].argmax()))
        return tokens[len(prompt) :]

    return greedily


def continue_one(gpt, prompt, count, **options):
    options = {"temperature": 0.0, **options}
    return [int(tokens_B[0]) for tokens_B in generate_in_chunks(*gpt, CONFIG, [np.array(prompt)], count, **options)]


def test_greedy_tokens_with_the_cache_are_those_without_it(gpt, greedily):
    prompt = np.random.default_rng(0).integers(0, 256, 70)  # longer than one chunk of the prompt
    assert continue_one(gpt, prompt, 60) == greedily(prompt, 60)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 50, "seed": 3}])
def test_tokens_in_chunks_are_those_of_the_plain_form(gpt, options):
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 256, length) for length in (70, 3, 64)]
    plain, chunks = (list(f(*gpt, CONFIG, prompts, 11, **options)) for f in (generate, generate_in_chunks))
    np.testing.assert_array_equal(plain, chunks)


@pytest.mark.parametrize("length", [1, PREFILL - 1, PREFILL, PREFILL + 1, 2 * PREFILL])
def test_a_prompt_of_any_length_is_read_whole(gpt, greedily, length):
    prompt = np.random.default_rng(length).integers(0, 256, length)
    assert continue_one(gpt, prompt, 3) == greedily(prompt, 3)


def test_what_is_written_past_the_cache_changes_nothing_that_was_asked_for(gpt, greedily):
    prompt, count = np.arange(PREFILL - 5), 5
    assert decoding._cache_size(len(prompt) + count) < len(prompt) + decoding.CHUNK
    assert continue_one(gpt, prompt, count) == greedily(prompt, count)


def test_prompts_of_unequal_length_continue_as_each_alone(gpt):
    random = np.random.default_rng(1)
    prompts = [random.integers(0, 256, length) for length in (9, 2, 30)]
    rows = np.array(list(generate_in_chunks(*gpt, CONFIG, prompts, 12, temperature=0.0))).T
    for prompt, row in zip(prompts, rows, strict=True):
        assert [t for t in row if t != NO_TOKEN] == continue_one(gpt, prompt, 12)


def test_a_sample_does_not_depend_on_how_many_are_made_beside_it(gpt):
    prompt = np.arange(5)
    several = np.array(list(generate_in_chunks(*gpt, CONFIG, [prompt] * 3, 20, temperature=1.0, seed=7)))
    assert several[:, 0].tolist() == continue_one(gpt, prompt, 20, temperature=1.0, seed=7)
    assert len({tuple(row) for row in several.T.tolist()}) == 3


def test_the_seed_decides_the_text(gpt):
    def text(seed):
        return sample_text(*gpt, CONFIG, ByteTokenizer(), "def ", 30, 1.0, seed)

    assert text(1) == text(1)
    assert text(1) != text(2)
    assert text(1).startswith("def ")


def test_a_sequence_ends_before_its_stop_token_and_the_others_go_on(gpt):
    prompts = [np.arange(5), np.arange(5, 10)]
    first, second = np.array(list(generate_in_chunks(*gpt, CONFIG, prompts, 10, temperature=0.0))).T.tolist()
    stop = next(token for token in first if token not in second)
    end = first.index(stop)
    tokens = np.array(list(generate_in_chunks(*gpt, CONFIG, prompts, 10, temperature=0.0, stop_token=stop))).T.tolist()
    assert tokens[0] == first[:end] + [NO_TOKEN] * (10 - end)
    assert tokens[1] == second
    assert continue_one(gpt, np.arange(5), 10, stop_token=stop) == first[:end]


def test_a_stop_token_within_a_prompt_ends_nothing(gpt):
    prompts = [np.array([1]), np.array([1, 2, 3, 2])]
    rows = np.array(list(generate_in_chunks(*gpt, CONFIG, prompts, 4, temperature=0.0, stop_token=2))).T
    assert [t for t in rows[1] if t != NO_TOKEN] == continue_one(gpt, prompts[1], 4, stop_token=2)
    assert rows[1, -1] != NO_TOKEN


def test_no_token_and_no_prompt_compiles_anything_again(gpt):
    decoding._compiled.cache_clear()
    continue_one(gpt, range(5), 20)
    continue_one(gpt, range(70), 30)  # a second chunk of the prompt and the next size of the cache
    read, choose = decoding._compiled(gpt[0].graphdef, 0.0, None, 1.0)
    assert (times_compiled(read), times_compiled(choose)) == (2, 2)
    continue_one(gpt, range(3), 40, seed=1)
    continue_one(gpt, range(80), 48)
    assert (times_compiled(read), times_compiled(choose)) == (2, 2)


def test_transposed_weights_make_the_same_tokens(gpt, monkeypatch):
    transposed = continue_one(gpt, range(9), 20)
    decoding._compiled.cache_clear()
    monkeypatch.setattr(decoding, "_transpose", lambda params: params)  # as on an accelerator
    assert continue_one(gpt, range(9), 20) == transposed
    decoding._compiled.cache_clear()


@pytest.mark.parametrize("tokens", [1, 64, 65, 129, 192, 193, 300, 1000])
def test_the_cache_is_little_larger_than_asked_for_and_its_sizes_are_few(tokens):
    sizes = {decoding._cache_size(n) for n in range(1, 1025)}
    assert sizes == {64, 128, 192, 256, 384, 512, 768, 1024}
    assert decoding._cache_size(tokens) == min(size for size in sizes if size >= tokens)


@pytest.mark.parametrize("batch", [1, 3])
def test_no_cache_is_copied_at_a_token(gpt, batch):
    model, params = gpt
    size = 192
    cache = make_cache(CONFIG.model, batch, size, jnp.float32)
    choose = decoding._compiled(model.graphdef, 0.0, None, 1.0)[1]
    logits_BV, given_TB = jnp.zeros((batch, 256)), np.zeros((decoding.CHUNK, batch), np.int32)
    hlo = (
        choose.lower(decoding._transpose(params), cache, logits_BV, given_TB, np.zeros(given_TB.shape))
        .compile()
        .as_text()
    )
    shapes = {"[{},{},{}]".format(*x.shape) for x in (cache.blocks[0].keys, cache.blocks[0].values)}
    assert all(shape in hlo for shape in shapes)
    copies = [line for line in hlo.splitlines() if " copy(" in line or " transpose(" in line]
    assert not [line for line in copies if any(shape in line for shape in shapes)]


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
    assert out.decode() == sample_text(*gpt, CONFIG, ByteTokenizer(), "", 9, 0.0, 0)


def test_a_float64_run_is_continued_in_float64(tmp_path, x64):
    run = write_trained(tmp_path / "run", replace(CONFIG, train=replace(CONFIG.train, dtype="float64")))
    argv = [sys.executable, "-m", "jax_impl.generate", "--run", str(run), "--max-tokens", "4", "--temperature", "0"]
    probe = (
        "import jax, jax_impl.generate as g; original = g.generate_in_chunks\n"
        "def probe(model, params, *rest, **options):\n"
        "    assert params['lm_head']['weight'].dtype == 'float64', params['lm_head']['weight'].dtype\n"
        "    assert (params['lm_head']['weight'] != params['lm_head']['weight'].astype('float32')).any()\n"
        "    return original(model, params, *rest, **options)\n"
        "g.generate_in_chunks = probe; import sys; sys.exit(g.main(sys.argv[1:]))\n"
    )
    done = subprocess.run([argv[0], "-c", probe, *argv[3:]], capture_output=True, env=cpu_env(), timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")


def cpu_env() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu"}
