"""Layout of a run directory, and its metrics log.

config.json     the configuration, sizes filled in
data.json       what was read: files, bytes, SHA-256 of the data, of the tokenizer, and of the weights of --init-from
metrics.jsonl   one object per line, each with `step`, the optimizer steps done
loss.png        the curves
tokenizer.json  where one was trained or given
checkpoints/    one folder per step
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinstep.config import Config, to_dict
from twinstep.errors import RunError, UserError, first_line

if TYPE_CHECKING:
    from twinstep.data import Tokenizer

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.json"
UNFINISHED = (".tmp", ".removed")  # what a killed process leaves among the checkpoints; orbax has its own suffix


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a temporary file, then rename it: a reader sees the old file or the new, never a part. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to, renamed to `folder` at the end, or deleted after an error."""
    beside = folder.with_name(f"{folder.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        os.replace(beside, folder)
    except Exception:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk: a folder's new name must not get there before them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """The hash of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def create_run(run: Path) -> None:
    """Make the folder of a new run. Raises UserError if it holds anything or cannot be made."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        # A process killed while it wrote config.json has left no more than that file's unfinished form.
        held = sorted(entry.name for entry in run.iterdir() if not entry.name.startswith(".config.json."))
    except OSError as error:
        raise UserError(f"cannot write to {run}: {error.strerror}; pass another --out-dir") from error
    if "config.json" in held:
        raise UserError(f"{run} already holds a run; pass --resume to continue it, or another --out-dir")
    if held:
        raise UserError(f"{run} is not empty (it holds {held[0]}); pass another --out-dir")


def write_run(run: Path, config: Config, data_summary: dict[str, Any], tokenizer: "Tokenizer | None" = None) -> None:
    """Record what the run is, as far as that is not there yet.

    A folder with config.json is a run that can be resumed: data.json follows from it, and a tokenizer that was given
    does not, so that comes before it. Raises UserError if they cannot be written; then none of them is left.
    """
    files: dict[str, Callable[[Path], object]] = {} if tokenizer is None else {TOKENIZER: tokenizer.save}
    files["config.json"] = lambda path: write_atomically(path, json.dumps(to_dict(config), indent=2) + "\n")
    files["data.json"] = lambda path: write_atomically(path, json.dumps(data_summary, indent=2) + "\n")
    missing = [run / name for name in files if not (run / name).exists()]
    try:
        for path in missing:
            files[path.name](path)
        (run / CHECKPOINTS).mkdir(exist_ok=True)
    except OSError as error:
        for path in missing:
            path.unlink(missing_ok=True)
        raise UserError(f"cannot write to {run}: {error.strerror}; make room, or pass another --out-dir") from error


def update_config(run: Path, config: Config) -> None:
    """Bring config.json up to date with what a resume may change: the horizon, and the places of data and weights."""
    path, now = run / "config.json", to_dict(config)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        output = {**values["output"], "extend_to": config.output.extend_to}
        updated = {**values, "data": now["data"], "train": now["train"], "output": output}
        if updated != values:
            write_atomically(path, json.dumps(updated, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {run}: {error.strerror}; make room and pass --resume again") from error


def lock_run(run: Path) -> contextlib.ExitStack:
    """A context that locks the run until it is left or the process ends, however it ends.

    Two processes that write one run would mix their lines and delete each other's checkpoints. Raises UserError if
    another one holds the lock. A file system without locks is used without. It is the folder's lock: config.json may be
    replaced meanwhile.
    """
    folder, stack = os.open(run, os.O_RDONLY), contextlib.ExitStack()
    stack.callback(os.close, folder)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stack.close()
        raise UserError(f"another process is writing to {run}; stop it first, or pass another --out-dir") from None
    except OSError:
        pass
    return stack


def has_no_data(run: Path) -> bool:
    """Whether a run is a model that was imported without data and has not been trained since."""
    try:
        return json.loads((run / "data.json").read_text(encoding="utf-8")) == {}
    except (OSError, ValueError):
        return False


def check_data(run: Path, data_summary: dict[str, Any]) -> None:
    """Raises UserError if the data has changed since the run began: its batches would be different ones.

    A run that was imported has an empty data.json: what it is first trained on is recorded. The weights of --init-from
    are read, and so compared, before the first checkpoint only.
    """
    path = run / "data.json"
    if data_summary.get("tokenizer") == "bpe" and not (run / TOKENIZER).exists():
        raise UserError(f"{run} has no {TOKENIZER}; put the one that its model was trained with there")
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        if recorded == {}:
            write_atomically(path, json.dumps(data_summary, indent=2) + "\n")
            return
        if data_summary.get("init_sha256", recorded.get("init_sha256")) != recorded.get("init_sha256"):
            raise UserError(
                f"the model in {data_summary['init_from']} has changed since the run in {run} began (its SHA-256 "
                "differs); restore it, or start a new run in another --out-dir"
            )
        for name in ("sha256", "tokenizer", "tokenizer_sha256", "vocab_size", "train", "validation", "train_examples"):
            if recorded.get(name) != data_summary.get(name):
                if name == "tokenizer_sha256":
                    raise UserError(
                        f"{run / TOKENIZER} is not the one that the run began with (its SHA-256 differs); restore it, "
                        "or start a new run in another --out-dir"
                    )
                raise UserError(
                    f"the data has changed since the run in {run} began ({name} was {recorded.get(name)}, is "
                    f"{data_summary.get(name)}); restore it, pass --data with its new place, or start a new run in "
                    "another --out-dir"
                )
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}; restore it, or start a new run") from error


def append_metrics(run: Path, record: dict[str, Any]) -> None:
    """Add one line to metrics.jsonl in one write. Raises RunError if it cannot be written."""
    try:
        with (run / METRICS).open("a", encoding="utf-8") as log:
            log.write(json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(
            f"cannot write {run / METRICS}: {error.strerror}; the checkpoints are intact: make room and pass --resume"
        ) from error


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All complete lines of metrics.jsonl; a torn last line is left out. Raises UserError if there is no log."""
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
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def trim_metrics(run: Path, step: int | None) -> None:
    """Drop torn lines and those past the checkpoint of `step`, all for None: what is resumed writes them again."""
    if not (run / METRICS).exists():
        return
    kept = [record for record in read_metrics(run) if step is not None and record["step"] <= step]
    try:
        write_atomically(run / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
    except OSError as error:
        raise UserError(f"cannot write to {run}: {error.strerror}; make room and pass --resume again") from error


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the finished checkpoints, ascending; unfinished ones have other names and are not listed."""
    folder = run / CHECKPOINTS
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()) if folder.is_dir() else []


def choose_step(run: Path, step: int | None) -> int:
    """The step asked for, or the newest. Raises UserError if there is no finished checkpoint of it."""
    steps = checkpoint_steps(run)
    if not steps:
        raise UserError(f"{run} has no finished checkpoint")
    if step is not None and step not in steps:
        raise UserError(f"{run} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def damaged(run: Path, step: int, why: str) -> UserError:
    """What to do about a checkpoint that cannot be used."""
    older = [s for s in checkpoint_steps(run) if s < step]
    mend = f"delete that folder to go back to step {older[-1]}" if older else "there is no older one: start a new run"
    return UserError(f"checkpoint {run / CHECKPOINTS / str(step)} cannot be read: {why}; {mend}")


def cannot_save(step: int | None, error: Exception) -> RunError:
    """What to do about a checkpoint that could not be written; None where its step is not known."""
    at = "the last checkpoint" if step is None else f"the checkpoint of step {step}"
    return RunError(
        f"cannot save {at}: {first_line(error)}; earlier checkpoints are intact: make room and pass --resume"
    )


def remove_old(run: Path, keep_last: int, read_facts: Callable[[Path, int], dict[str, Any]]) -> None:
    """Remove all checkpoints but the newest `keep_last`, and the best one according to the newest of them."""
    steps = checkpoint_steps(run)
    if len(steps) <= keep_last:
        return
    best_step = read_facts(run, steps[-1])["best_step"]
    for step in steps[:-keep_last]:
        if step != best_step:
            # Under its own name a half removed checkpoint would pass for a finished one.
            removed = run / CHECKPOINTS / f"{step}.removed"
            os.replace(run / CHECKPOINTS / str(step), removed)
            shutil.rmtree(removed, ignore_errors=True)


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process left half written or half removed among the checkpoints."""
    folder = run / CHECKPOINTS
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name.endswith(UNFINISHED) or ".orbax-checkpoint-tmp" in entry.name:
            shutil.rmtree(entry, ignore_errors=True)
