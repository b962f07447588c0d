"""A batch in words: what `python -m twinstep.data` prints.

Shapes: A micro-steps, B examples of a global batch, T time, F features.
"""

from collections.abc import Iterator

import numpy as np

from twinstep.data.interface import Batch, Data
from twinstep.data.tokenizer import Tokenizer

IGNORED = -1  # a target that does not count
SHOWN = 5  # so many ranges of ignored targets are listed


def describe_rows(batch: Batch, data: Data, only: int | None = None) -> Iterator[str]:
    """Lines on each row of a batch (A, B/A, ...), numbered from 0 over the global batch.

    only: the one row to describe, with all its numbers.
    """
    micro_steps, rows = batch["targets"].shape[:2]
    for number in range(micro_steps * rows) if only is None else [only]:
        micro_step = number // rows
        row = {name: x[micro_step, number % rows] for name, x in batch.items()}
        described = describe_text(row, data.tokenizer, only is not None) if data.tokenizer else describe_table_row(row)
        first, *rest = described
        yield f"row {number}{f' (micro-step {micro_step})' if micro_steps > 1 else ''}: {first}"
        yield from (f"    {line}" for line in rest)


def describe_text(row: Batch, tokenizer: Tokenizer, in_full: bool) -> Iterator[str]:
    """A sequence's text, and which targets count. row: tokens, targets (T,). in_full: with all ids and targets."""
    tokens, targets = row["tokens"], row["targets"]
    ignored = targets == IGNORED
    counting = f"{(~ignored).sum()} of {len(targets)} targets count"
    left_out = f" (ignored at {ranges(np.flatnonzero(ignored))})" if ignored.any() else ""
    yield f"ids {tokens.min()} to {tokens.max()}, {(tokens == tokenizer.bos).sum()} BOS tokens; {counting}{left_out}"
    yield readable(tokens, tokenizer)
    if in_full:
        yield f"tokens: {numbers(tokens)}"
        yield f"targets: {numbers(targets)}"


def describe_table_row(row: Batch) -> Iterator[str]:
    """A table's row. row: inputs (F,), targets (), and perhaps dropout_mask (hidden,)."""
    inputs, wrong = row["inputs"], np.flatnonzero(~np.isfinite(row["inputs"]))
    target = "no target (it fills up the last batch)" if row["targets"] == IGNORED else f"target {row['targets']}"
    finite = f"; not finite at {ranges(wrong)}" if wrong.size else ""
    dropout = ""
    if "dropout_mask" in row:
        dropout = f"; dropout keeps {row['dropout_mask'].sum()} of {len(row['dropout_mask'])} units"
    yield f"{target}, {len(inputs)} inputs from {inputs.min():.4g} to {inputs.max():.4g}{finite}{dropout}"
    yield numbers(inputs)


def readable(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of tokens (T,) on one line: special tokens by name, line ends and control characters escaped."""
    names = {id: name for name, id in tokenizer.special.items()}
    text = ""
    for part in np.split(tokens, np.flatnonzero(np.isin(tokens, list(names)))):
        begins_special = part.size > 0 and int(part[0]) in names
        text += names[int(part[0])] + tokenizer.decode(part[1:]) if begins_special else tokenizer.decode(part)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def ranges(places: np.ndarray) -> str:
    """Ascending places (n,) as "0-24, 30", the first few of them."""
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:SHOWN]]
    more = f" and in {len(runs) - SHOWN} more places" if len(runs) > SHOWN else ""
    return ", ".join(shown) + more


def numbers(x: np.ndarray) -> str:
    """All numbers of an array (n,) on one line."""
    return " ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in x.tolist())
