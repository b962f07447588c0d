"""What run directories of both frameworks have in common, read and written around their checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

from parity.formats.files import write_json, write_tokenizer
from parity.formats.snapshot import Snapshot
from twinstep.cli import read_run_config
from twinstep.config import Config, to_dict
from twinstep.pretrained.files import read_tokenizer
from twinstep.run_dir import CHECKPOINTS, METRICS, read_metrics

DATA = "data.json"


def read_files(run: Path, step: int) -> tuple[Config, str | None, dict[str, bytes]]:
    """Configuration, text of the tokenizer, and the other files of a run as they were at `step`."""
    config = read_run_config(run)
    files = {}
    if (run / DATA).exists():
        files[DATA] = (run / DATA).read_bytes()
    if (run / METRICS).exists():
        lines = [json.dumps(record) + "\n" for record in read_metrics(run) if record["step"] <= step]
        files[METRICS] = "".join(lines).encode()
    return config, read_tokenizer(run), files


def write_files(run: Path, snapshot: Snapshot, out: Path) -> Config:
    """Make the folder of a run without its checkpoint; returns the configuration, which now names `out`."""
    config = replace(snapshot.config, output=replace(snapshot.config.output, out_dir=str(out), resume=False))
    (run / CHECKPOINTS).mkdir(parents=True)
    write_json(run / "config.json", to_dict(config))
    write_tokenizer(run, snapshot.tokenizer)
    for name, content in {DATA: b"{}\n", **snapshot.files}.items():  # {}: the first training records its data
        (run / name).write_bytes(content)
    return config
