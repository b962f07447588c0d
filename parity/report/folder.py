"""Where reports go: a folder that is new, empty, or holds reports of ours already."""

import os
from pathlib import Path

from twinstep.errors import UserError

DEFAULT = Path("parity-report")
OURS = ("parity.json", "faults.json", "all.json")


def open_folder(out_dir: str | None) -> Path:
    """The folder to write to, made if need be; parity-report when none is given.

    Raises UserError for one that cannot be written or that holds something else.
    """
    folder = DEFAULT if out_dir is None else Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise UserError(f"cannot use --out-dir {folder}: {error.strerror}; pass another") from error
    if held and not any(name in OURS for name in held):
        raise UserError(f"{folder} holds {held[0]} and no report; pass --out-dir with a new folder")
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to --out-dir {folder}; pass another")
    return folder
