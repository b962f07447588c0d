"""Train a tiny GPT in JAX on the text of a folder, generate with PyTorch.

`python -m examples.train_here_generate_there [FOLDER]`, this repository's
pages when no folder is given.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import jax_impl.generate
import jax_impl.train
import parity.cli
import torch_ref.generate

SIZE = "--depth 2 --d-model 64 --head-dim 32 --sequence-len 64"
LENGTH = "--steps 30 --batch-size 8 --eval-batches 2 --sample-tokens 1"
PROMPT = "--prompt torch --max-tokens 20 --temperature 0"


def generated(command, run: Path) -> str:
    """What a generate command writes to standard output."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(out):
        command(["--run", str(run), *PROMPT.split()])
    out.flush()
    return out.buffer.getvalue().decode()


def main(folder: str) -> tuple[str, str]:
    """The greedy text of the run in JAX, and of the same run in torch."""
    with tempfile.TemporaryDirectory() as scratch:
        run, converted = Path(scratch) / "jax", Path(scratch) / "torch"
        where = ["--data", folder, "--out-dir", str(run)]
        jax_impl.train.main(["gpt", *where, *SIZE.split(), *LENGTH.split()])
        parity.cli.main(["convert", str(run), str(converted)])
        return (
            generated(jax_impl.generate.main, run),
            generated(torch_ref.generate.main, converted),
        )


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "docs"
    in_jax, in_torch = main(folder)
    print(in_jax)
    print("the same text" if in_jax == in_torch else f"torch: {in_torch}")
