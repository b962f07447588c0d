"""Layout of a run directory, and its metrics log.

config.json     the whole configuration, sizes filled in
data.json       what was read: files, bytes, SHA-256
metrics.jsonl   one object per line, each with `step`, the optimizer steps done
loss.png        the curves
tokenizer.json  where one was trained
checkpoints/    one folder per step
"""

import json
import os
from pathlib import Path
from typing import Any

from recipe.config import Config, to_dict
from recipe.errors import UserError

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.json"


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the new, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def create_run(run: Path) -> None:
    """Make the folder of a new run. Raises UserError if it holds anything or cannot be written."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        held = sorted(entry.name for entry in run.iterdir())
        if "config.json" in held:
            raise UserError(f"{run} already holds a run; pass --resume to continue it, or another --out-dir")
        if held:
            raise UserError(f"{run} is not empty (it holds {held[0]}); pass another --out-dir")
        (run / CHECKPOINTS).mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {run}: {error.strerror}; pass another --out-dir") from error


def write_run(run: Path, config: Config, data_summary: dict[str, Any]) -> None:
    """Record what the run is. config.json comes last: a folder with it is a run that can be resumed."""
    write_atomically(run / "data.json", json.dumps(data_summary, indent=2) + "\n")
    write_atomically(run / "config.json", json.dumps(to_dict(config), indent=2) + "\n")


def check_data(run: Path, data_summary: dict[str, Any]) -> None:
    """Raises UserError if the data has changed since the run began: its batches would be others."""
    path = run / "data.json"
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for name in ("sha256", "tokenizer", "train", "validation", "train_examples"):
        if recorded.get(name) != data_summary.get(name):
            raise UserError(
                f"the data has changed since the run in {run} began ({name} was {recorded.get(name)}, is "
                f"{data_summary.get(name)}); restore it, or start a new run in another --out-dir"
            )


def append_metrics(run: Path, record: dict[str, Any]) -> None:
    """Add one line to metrics.jsonl in one write."""
    with (run / METRICS).open("a", encoding="utf-8") as log:
        log.write(json.dumps(record, allow_nan=False) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines of metrics.jsonl; a torn last line is left out. Raises UserError if there is no log."""
    try:
        text = (run / METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{run / METRICS} cannot be read: {error.strerror}; is {run} a run?") from error
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def trim_metrics(run: Path, step: int) -> None:
    """Drop torn lines and those past `step`: what is resumed there writes them again."""
    if (run / METRICS).exists():
        kept = [json.dumps(record) + "\n" for record in read_metrics(run) if record["step"] <= step]
        write_atomically(run / METRICS, "".join(kept))


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the whole checkpoints, ascending; unfinished ones have other names and are not listed."""
    folder = run / CHECKPOINTS
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []
