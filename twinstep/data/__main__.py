"""Print a batch of a run: `python -m twinstep.data --run RUN --batch N`."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from twinstep.cli import parse_flags, read_run_config
from twinstep.config import NATURAL, Bound, Config, CorpusConfig, check_bounds
from twinstep.data import Data, load_data
from twinstep.data.show import describe_rows
from twinstep.errors import UserError, run_command
from twinstep.run_dir import TOKENIZER, check_data


@dataclass(frozen=True)
class BatchOptions:
    """Which batch of which run."""

    run: str | None = None
    """Run directory."""
    batch: int = 0
    """Number of the batch, from 0; optimizer step n trains on batch n - 1."""
    validation: bool = False
    """A batch of the held-out data, not of the training data."""
    row: int | None = None
    """Only this row of the batch, from 0, with all its ids and targets; every row in short when left out."""
    data: str | None = None
    """Where the run's text is now, if not where it was."""

    BOUNDS: ClassVar[dict[str, Bound]] = {"batch": NATURAL, "row": NATURAL}

    def __post_init__(self) -> None:
        check_bounds(self)


def main(argv: list[str]) -> int:
    options = parse_flags("python -m twinstep.data", BatchOptions(), argv)
    if options.run is None:
        raise UserError("--run is missing; pass the directory of a run")
    run = Path(options.run)
    config = read_run_config(run)
    data = read_data(config, run, options.data)
    source = data.validation if options.validation else data.train
    if options.validation and options.batch >= source.batches:
        raise UserError(f"--batch is {options.batch}; the held-out data has batches 0 to {source.batches - 1}")
    if options.row is not None and options.row >= config.batch_size:
        raise UserError(f"--row is {options.row}; a batch has rows 0 to {config.batch_size - 1}")
    batch = source.batch(options.batch)
    if options.validation:
        batch = {name: x[None] for name, x in batch.items()}
        place = f"validation batch {options.batch} of {source.batches}"
    else:
        epoch, index = divmod(options.batch, source.batches)
        place = f"batch {options.batch}, which step {options.batch + 1} trains on: {index} of epoch {epoch}"
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    print(f"{run}, {place}, {config.batch_size} rows of {data.summary['source']}")
    for line in describe_rows(batch, data, options.row):
        print(line)
    return 0


def read_data(config: Config, run: Path, moved_to: str | None) -> Data:
    """The data that a run trains on. Raises UserError if there is none, or if it has changed since."""
    if moved_to is not None:
        if not isinstance(config.data, CorpusConfig):
            raise UserError(f"--data is for a run on text; {run} is one of {config.model_name}, leave it out")
        config = replace(config, data=replace(config.data, data=moved_to))
    recorded = run / "data.json"
    if recorded.exists() and recorded.read_bytes().strip() == b"{}":  # imported from weights alone
        raise UserError(f"{run} has not been trained on any data yet; resume it first")
    data = load_data(config, run / TOKENIZER if (run / TOKENIZER).exists() else None)
    check_data(run, data.summary)
    return data


if __name__ == "__main__":
    raise SystemExit(run_command(main))
