"""`generate --chat`: a conversation with a model in the terminal, or line by line from a pipe.

The model reads all of it again at each turn, as nanochat's template has it (`twinstep.data.chat`).
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np

from twinstep.config import Config, CorpusConfig
from twinstep.data import Tokenizer
from twinstep.errors import UserError
from twinstep.generation import GenerateOptions, TextStream, begin, write

LEAST_ROOM = 4  # a reply gets a fourth of the model's context, or --max-tokens where that is less


def converse(
    options: GenerateOptions, config: Config, tokenizer: Tokenizer, extend: Callable[..., Iterator[np.ndarray]]
) -> None:
    """Answers each line until an empty one or the end of the input; --prompt is the first.

    extend: `generate` of the model, which takes prompts, max_tokens, seed and stop_token. Standard output holds the
    replies, on a terminal after "assistant: "; what limits them goes to standard error. Raises UserError for a model
    without the special tokens and for lines that are not UTF-8.
    """
    assert isinstance(config.data, CorpusConfig)
    longest = config.data.sequence_len
    begin(tokenizer, "", chat=True)  # refused before anybody writes
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    exchanges: list[np.ndarray] = []
    for turn, text in enumerate(user_lines(options.prompt, is_terminal)):
        asked, end = begin(tokenizer, text, chat=True)
        bos, asked = asked[:1], asked[1:]
        room = min(options.max_tokens, longest // LEAST_ROOM)
        forgotten = oldest_to_forget([len(part) for part in exchanges], longest - len(asked) - room)
        exchanges = exchanges[forgotten:]
        context = np.concatenate([bos, *exchanges, asked])
        if forgotten:
            note(f"{forgotten} of the oldest exchanges left out: the model was trained on {longest} tokens at once")
        if len(context) > longest:
            note(f"that message makes {len(context)} tokens, the model was trained on {longest} at once; shorten it")
            continue
        if is_terminal:
            write("assistant: ")
        count = min(options.max_tokens, longest + 1 - len(context))
        seed = (options.seed + turn) % 2**32
        tokens = (int(tokens_B[0]) for tokens_B in extend([context], count, seed=seed, stop_token=end))
        said = write_reply(tokens, tokenizer, options.stop)
        write("\n")
        if len(said) == count:
            limit = (
                "--max-tokens" if count == options.max_tokens else "the tokens that the model was trained on at once"
            )
            note(f"cut after {count} tokens: {limit}")
        exchanges.append(np.concatenate([asked, np.array([*said, end], np.int32)]))


def user_lines(first: str, is_terminal: bool) -> Iterator[str]:
    """What the user says: `first` if that is not empty, then a line at a time until one is empty or there is none."""
    if first:
        yield first
    while True:
        try:
            text = input("user: " if is_terminal else "")
            text.encode()
        except EOFError:  # Ctrl-D
            text = ""
            if is_terminal:
                write("\n")
        except UnicodeError:
            raise UserError("a line of the input is not UTF-8 text; convert it") from None
        if not text.strip():
            return
        yield text


def oldest_to_forget(lengths: list[int], room: int) -> int:
    """How many of the first exchanges must go, so that the others and the BOS token fit into `room`."""
    count = 0
    while count < len(lengths) and 1 + sum(lengths[count:]) > room:
        count += 1
    return count


def write_reply(tokens: Iterator[int], tokenizer: Tokenizer, stop: str | None) -> list[int]:
    """Writes a reply as it is made, up to `stop` or to a BOS token, and returns its tokens."""
    stream, said = TextStream(tokenizer, stop), []
    for token in tokens:
        if token == tokenizer.bos:  # the model thinks that the conversation is over
            break
        said.append(token)
        write(stream.push(token))
        if stream.stopped:
            break
    write(stream.close())
    return said


def note(text: str) -> None:
    """A line on standard error."""
    print(f"({text})", file=sys.stderr, flush=True)
