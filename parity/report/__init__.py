"""Reports of a check: a table on the terminal, parity.json, report.html and PNG figures.

parity.json   the result, as `parity.result` describes it
report.html   one file with everything a reader needs, that opens offline
losses.png    both frameworks' losses, their difference, envelope and budget; absent where no run was compared
errors.png    heat map of error by layer and stage

Those of injected faults, faults.json, faults.html and faults.png, are in `parity.report.faults`.
"""

import json
from collections.abc import Callable
from pathlib import Path

from parity.report.faults import print_fault_matrix, write_fault_report
from parity.report.figures import heat_png, losses_png
from parity.report.heat import LEVELS, by_layer
from parity.report.page import report_page
from parity.report.terminal import print_report
from parity.result import Result
from twinstep.errors import UserError
from twinstep.run_dir import write_atomically

__all__ = ["print_fault_matrix", "print_report", "write_fault_report", "write_report"]


def write_report(result: Result, out_dir: Path | str) -> list[Path]:
    """Write all files, each whole or not at all, over those of an earlier report; returns their paths.

    Raises UserError if they cannot be written.
    """
    folder = Path(out_dir)
    title = f"{result.model}, {result.dtype}: part of its budget that the error uses, by layer and stage"
    files: dict[str, Callable[[], bytes | str]] = {
        "parity.json": lambda: json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n",
        "report.html": lambda: report_page(result),
        "errors.png": lambda: heat_png(by_layer(result), title, dict(enumerate(LEVELS))),
        **({"losses.png": lambda: losses_png(result)} if result.curves else {}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content())
        if not result.curves:
            (folder / "losses.png").unlink(missing_ok=True)  # an earlier report's
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}; pass another --out-dir") from error
    return [folder / name for name in files]
