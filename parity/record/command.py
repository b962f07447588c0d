"""`python -m parity record FILE.py`: one side of a pair into a new folder."""

import hashlib
from pathlib import Path

from parity.pair.file import jax_side, known_options, run_file, torch_side
from parity.pair.stages import check_dtype
from parity.record.recording import File, Side, read_recording
from parity.request import Platform
from twinstep.errors import UserError
from twinstep.run_dir import new_folder

# Of `parity.compare`'s other arguments; the rest is for training, of which a recording holds nothing.
OPTIONS = ("convert", "weights", "layers", "dtype", "jax_inputs", "outputs", "buffers", "where", "losses", "platform")


def record(
    path: Path, side: Side, weights: Path | None, out: Path, dtype: str | None, platform: Platform | None
) -> None:
    """Raises UserError for bad input, and writes nothing then."""
    if side == "jax" and weights is None:
        raise UserError("the JAX side starts from torch's weights; pass --weights, a folder recorded with --side torch")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; pass --out with a new folder")
    given = None if weights is None else read_recording(weights, "torch")
    found = run_file(path)
    options = found.get("OPTIONS", {}) if side == "jax" else known_options(path, found)
    dtype = dtype or options.get("dtype", "float64")
    platform = platform or options.get("platform", "cpu")
    check_dtype(dtype)
    left_out = [name for name in options if name not in OPTIONS]
    notes = [f"Not recorded, and not compared: OPTIONS' {', '.join(left_out)}."] if left_out else []
    file = File(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), notes)
    try:
        with new_folder(out) as folder:
            if side == "jax":
                from parity.record.jax_side import record_jax

                assert given is not None
                record_jax(folder, file, lambda state: jax_side(path, found, state), options, dtype, platform, given)
            else:
                from parity.record.torch_side import record_torch

                record_torch(folder, file, torch_side(path, found), options, dtype, platform, given)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; pass another --out") from error
