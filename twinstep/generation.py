"""What both `generate` commands share: their flags, the random numbers, and the decoding of tokens to text.

Shapes: B sequences.
"""

import codecs
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from twinstep.config import COUNT, NATURAL, Bound, Config, CorpusConfig, GPTConfig, check_bounds, check_text
from twinstep.data import ByteTokenizer, Tokenizer, load_tokenizer
from twinstep.data.chat import ASSISTANT_END, ASSISTANT_START, Span, check_tokenizer, encode_spans, user_turn
from twinstep.data.tokenizer import BOS
from twinstep.errors import UserError

NO_TOKEN = -1  # in place of a token, for a sequence that has stopped or whose prompt is still being read


@dataclass(frozen=True)
class GenerateOptions:
    """What to continue, and how the next token is chosen."""

    run: str | None = None
    """Run directory of a gpt."""
    prompt: str = ""
    """Text to continue; the beginning of a document when left out."""
    max_tokens: int = 200
    """Tokens to add at most; fewer where the model ends its document."""
    temperature: float = 0.8
    """Logits are divided by it; 0: always the likeliest token."""
    top_k: int | None = None
    """Choose among so many of the likeliest tokens; among all when left out."""
    top_p: float = 1.0
    """Choose among the fewest likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of the choices; the same in both frameworks."""
    stop: str | None = None
    """Text before which the continuation ends."""
    samples: int = 1
    """Continuations to make at once, printed one after another."""
    step: int | None = None
    """Checkpoint to load; the newest when left out."""
    chat: bool = False
    """Talk with a model that was trained on dialogues: it answers --prompt and each line of standard input."""

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "max_tokens": Bound(1, 2**20),
        "temperature": NATURAL,
        "top_k": COUNT,
        "top_p": Bound(0, 1, open_low=True),
        "seed": Bound(0, 2**32 - 1),
        "samples": Bound(1, 2**12),
        "step": NATURAL,
    }

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("prompt", "stop"):
            check_text(name, getattr(self, name) or "")
        if self.stop == "":
            raise UserError("--stop is empty; leave it out to stop at the end of the document only")
        if self.chat and self.samples > 1:
            raise UserError(f"--samples is {self.samples}; a conversation with --chat has one reply, leave it out")

    @property
    def run_dir(self) -> Path:
        """The run, which has no default."""
        if self.run is None:
            raise UserError("--run is missing; pass the directory of a trained gpt")
        return Path(self.run)


def tokenizer_of(config: Config, run: Path) -> Tokenizer:
    """The tokenizer of a language model's run. Raises UserError for another kind of run."""
    if not isinstance(config.model, GPTConfig) or not isinstance(config.data, CorpusConfig):
        raise UserError(f"{run} holds a run of {config.model_name}, which makes no text; pass a run of gpt")
    tokenizer: Tokenizer
    if config.data.tokenizer == "bytes":
        tokenizer = ByteTokenizer(config.data.special_tokens)
    else:
        tokenizer = load_tokenizer(run / "tokenizer.json")
    if config.model.vocab_size is None or config.model.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"{run} has a tokenizer of {tokenizer.vocab_size} tokens and a model of {config.model.vocab_size}; "
            "restore the run's own tokenizer.json"
        )
    return tokenizer


def trains_on_dialogues(config: Config) -> bool:
    """Whether a run learns what an assistant says."""
    return isinstance(config.data, CorpusConfig) and config.data.chat


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """(T,) int32: the BOS token, then the prompt."""
    return np.concatenate([np.array([tokenizer.bos], np.int32), tokenizer.encode(prompt)])


def begin(tokenizer: Tokenizer, prompt: str, chat: bool) -> tuple[np.ndarray, int]:
    """The ids (T,) that are continued, and the token before which the continuation ends.

    chat: the prompt is what a user says, and the assistant replies; otherwise a document begins with it. Raises
    UserError if the tokenizer has no special tokens of dialogues.
    """
    if not chat:
        return encode_prompt(tokenizer, prompt), tokenizer.bos
    check_tokenizer(tokenizer, "the model", "take one that was trained with --special-tokens chat")
    spans = [Span(BOS, special=True), *user_turn(prompt), Span(ASSISTANT_START, special=True)]
    ((ids, _),) = encode_spans([spans], tokenizer)
    return ids, tokenizer.special[ASSISTANT_END]


def uniform_numbers(seed: int, samples: int, tokens: int) -> np.ndarray:
    """(samples, tokens) float32 in [0, 1): one number decides one token, in either framework.

    Each sample has a stream of its own, so it does not depend on how many are made beside it.
    """
    streams = (np.random.Generator(np.random.Philox([seed, sample])) for sample in range(samples))
    return np.stack([stream.random(tokens, dtype=np.float32) for stream in streams])


class TextStream:
    """Text from tokens, one at a time.

    A character is held back until all its bytes are there, and what may be the beginning of `stop` until it is clear
    that it is not; bytes that are not UTF-8 become U+FFFD. `stopped` is true from `stop` on.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | None = None):
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is complete now; NO_TOKEN adds nothing."""
        return "" if token == NO_TOKEN else self._release(self._tokenizer.to_bytes([token]), final=False)

    def close(self) -> str:
        """The rest."""
        return self._release(b"", final=True)

    def _release(self, new: bytes, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(new, final)
        keep = 0
        if self._stop is not None:
            before, found, _ = text.partition(self._stop)
            if found:
                self.stopped, text = True, before
            elif not final:
                keep = max(n for n in range(len(self._stop)) if text.endswith(self._stop[:n]))
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def collect_text(options: GenerateOptions, tokenizer: Tokenizer, tokens: Iterator[np.ndarray]) -> list[str]:
    """The prompt and its continuation, or with `chat` the reply to it, for each sample; tokens as in `write_text`."""
    streams = [TextStream(tokenizer, options.stop) for _ in range(options.samples)]
    texts = ["" if options.chat else options.prompt] * options.samples
    for tokens_B in tokens:
        texts = [
            text + stream.push(token) for text, stream, token in zip(texts, streams, tokens_B.tolist(), strict=True)
        ]
        if all(stream.stopped for stream in streams):
            break
    return [text + stream.close() for text, stream in zip(texts, streams, strict=True)]


def write_text(options: GenerateOptions, tokenizer: Tokenizer, tokens: Iterator[np.ndarray]) -> None:
    """Prompt and continuation on standard output, the first sample's as it is made, the others' after it.

    tokens: (B,) int per step, NO_TOKEN where a sample has none. Nothing else is written, but a line end between
    samples, and one at the end on a terminal.
    """
    streams = [TextStream(tokenizer, options.stop) for _ in range(options.samples)]
    texts = [""] * options.samples
    write(options.prompt)
    for tokens_B in tokens:
        for number, token in enumerate(tokens_B.tolist()):
            text = streams[number].push(token)
            if number == 0:
                write(text)
            else:
                texts[number] += text
        if all(stream.stopped for stream in streams):
            break
    write(streams[0].close())
    for number in range(1, options.samples):
        write("\n" + options.prompt + texts[number] + streams[number].close())
    if sys.stdout.isatty():
        write("\n")


def write(text: str) -> None:
    """Text on standard output, at once."""
    sys.stdout.buffer.write(text.encode())  # UTF-8, whatever the locale
    sys.stdout.buffer.flush()
