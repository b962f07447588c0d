"""A model trained on dialogues, in both frameworks: the same losses, resumed bit for bit, and talked with."""

import io
import json
import shutil
import sys

import numpy as np
import pytest

import jax_impl.generate
import torch_ref.generate
from tests.helpers import dialogues
from tests.helpers.refusals import assert_refused
from tests.helpers.trust import FRAMEWORKS, MODELS, assert_same_run, cut_back, lines, train
from twinstep.errors import run_command
from twinstep.generation import GenerateOptions

GENERATE = {"jax": jax_impl.generate, "torch": torch_ref.generate}
CHAT = ("--chat", "--special-tokens", "chat", "--sequence-len", "64")
SLOW_IN_JAX = [pytest.param("jax", marks=pytest.mark.slow), "torch"]  # XLA takes seconds to compile each
STEPS = ("--steps", "4", "--eval-every", "2", "--save-every", "2", "--log-every", "1", "--accumulation", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Dialogues, a run on them in each framework, and one on plain text."""
    place = tmp_path_factory.mktemp("dialogues")
    path = dialogues.write(place / "dialogues.jsonl", dialogues.conversations(120))
    (place / "words.txt").write_text("one two three\n" * 400)
    for framework in FRAMEWORKS:
        argv = [*MODELS["gpt"], *CHAT, *STEPS, "--data", str(path), "--sample-prompt", "hello"]
        assert train(framework, [*argv, "--out-dir", str(place / framework)]) == 0
    argv = [*MODELS["gpt"], "--data", str(place / "words.txt"), "--steps", "1", "--out-dir", str(place / "plain")]
    assert train("torch", argv) == 0
    return place


def test_both_frameworks_have_the_same_losses(place):
    jax, torch = (lines(place / framework) for framework in FRAMEWORKS)
    assert [line["step"] for line in jax] == [line["step"] for line in torch]
    for ours, theirs in zip(jax, torch, strict=True):
        for name in ("loss", "val_loss", "val_bpb"):
            assert (name in ours) == (name in theirs)
            if name in ours:
                # Float32, four steps of Muon: rounding alone is below 1e-6.
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=f"{name}, {ours['step']}")
    assert torch[-1]["val_bpb"] < torch[0]["val_bpb"]
    summaries = [json.loads((place / framework / "data.json").read_text()) for framework in FRAMEWORKS]
    assert summaries[0] == summaries[1]
    assert summaries[0]["train"]["conversations"] == 114


@pytest.mark.parametrize("framework", SLOW_IN_JAX)
def test_a_resumed_run_ends_as_the_undisturbed_one(framework, place, tmp_path):
    run = cut_back(place / framework, tmp_path / "cut", 2)
    assert train(framework, ["gpt", "--resume", "--out-dir", str(run)]) == 0
    assert_same_run(framework, run, place / framework)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_run_keeps_the_special_tokens_and_the_dialogues(framework, place):
    config = json.loads((place / framework / "config.json").read_text())
    assert config["model"]["vocab_size"] == 264
    assert (config["data"]["special_tokens"], config["data"]["chat"]) == ("chat", True)


def talk(framework, place, capfd, monkeypatch, text: str, *argv: str) -> str:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    capfd.readouterr()
    run = ("--run", str(place / framework), "--max-tokens", "12")
    assert run_command(GENERATE[framework].main, [*run, "--chat", *argv]) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_conversation_through_a_pipe(framework, place, capfd, monkeypatch):
    both = talk(framework, place, capfd, monkeypatch, "one\ntwo\n", "--temperature", "0")
    first = talk(framework, place, capfd, monkeypatch, "", "--prompt", "one", "--temperature", "0")
    assert first
    assert both.startswith(first)
    options = GenerateOptions(str(place / framework), prompt="one", chat=True, max_tokens=12, temperature=0)
    assert GENERATE[framework].generate_text(options) == [first.removesuffix("\n")]


def test_both_frameworks_reply_the_same(place, capfd, monkeypatch, tmp_path):
    """The same weights in both: what torch trained, converted."""
    from parity.convert import convert

    convert(place / "torch", tmp_path / "jax", None, "jax", None)
    shutil.copytree(place / "torch", tmp_path / "torch")
    replies = [talk(f, tmp_path, capfd, monkeypatch, "one\ntwo\n", "--seed", "3") for f in FRAMEWORKS]
    assert replies[0] == replies[1]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_ctrl_c_ends_a_conversation_with_130(framework, place, capfd, monkeypatch):
    def interrupted(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert run_command(GENERATE[framework].main, ["--run", str(place / framework), "--chat"]) == 130
    assert capfd.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("argv", [("--chat",), ("--chat", "--prompt", "a")])
def test_a_model_without_the_special_tokens_is_not_talked_with(argv, place, capfd):
    assert run_command(torch_ref.generate.main, ["--run", str(place / "plain"), *argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "--chat needs the special token <|user_start|>, which the model does not have" in err


GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
REFUSED = {
    "not JSON": ("{", r"bad\.jsonl:3 is not JSON"),
    "no messages": ('{"text": "a"}', r'bad\.jsonl:3 has no list of messages under "messages"'),
    "unknown role": (
        '{"messages": [{"role": "bot", "content": "a"}]}',
        r"bad\.jsonl:3 has message 1 of the role 'bot'",
    ),
    "wrong order": (json.dumps({"messages": GOOD["messages"][::-1]}), r"bad\.jsonl:3 has a message of the assistant"),
    "empty content": ('{"messages": [{"role": "user", "content": ""}]}', r"bad\.jsonl:3 has an empty string"),
    "no assistant": (json.dumps({"messages": GOOD["messages"][:1]}), r"bad\.jsonl:3 has nothing that the assistant"),
    "too few": (json.dumps(GOOD), r"holds 3 conversations; 20 or more are needed"),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_dialogue_is_refused_in_one_line(case, framework, tmp_path, monkeypatch, capsys):
    line, says = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("\n".join([json.dumps(GOOD)] * 2 + [line]) + "\n")
    cache = str(tmp_path.parent / "cache")
    argv = [*MODELS["gpt"], *CHAT, "--data", "bad.jsonl", "--out-dir", "new", "--cache-dir", cache]
    assert_refused(tmp_path, framework, argv, says, capsys)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--chat",), "which the tokenizer bytes does not have; pass --special-tokens chat for a new tokenizer"),
        (("--chat", "--init-from", "plain"), "which the tokenizer bytes does not have"),
        (("--special-tokens", "chat", "--init-from", "plain"), "--special-tokens is chat, but .* none; leave"),
        ((*CHAT, "--masked-targets", "0.1"), "leave --masked-targets out"),
    ],
)
def test_a_model_or_a_flag_that_does_not_fit_is_refused(flags, says, framework, place, tmp_path, monkeypatch, capsys):
    shutil.copytree(place / "plain", tmp_path / "plain")
    shutil.copy(place / "dialogues.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    sizes = () if "--init-from" in flags else MODELS["gpt"][1:]
    argv = ["gpt", *sizes, "--data", "dialogues.jsonl", "--out-dir", "new", *flags]
    assert_refused(tmp_path, framework, argv, says, capsys)


@pytest.mark.parametrize("framework", SLOW_IN_JAX)
def test_a_model_of_text_with_the_special_tokens_is_fine_tuned(framework, place, tmp_path):
    text = ("--data", str(place / "words.txt"), "--special-tokens", "chat", "--steps", "1")
    assert train(framework, [*MODELS["gpt"], *text, "--out-dir", str(tmp_path / "base")]) == 0
    talks = ("--chat", "--data", str(place / "dialogues.jsonl"), "--steps", "1", "--sequence-len", "64")
    start = ("--init-from", str(tmp_path / "base"), "--batch-size", "2", "--sample-tokens", "4")
    assert train(framework, ["gpt", *start, *talks, "--out-dir", str(tmp_path / "tuned")]) == 0
    found = lines(tmp_path / "tuned")
    assert [line["step"] for line in found if "val_bpb" in line] == [0, 1]
