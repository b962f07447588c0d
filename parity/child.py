"""A check in a child process, where JAX is set up for its arithmetic, its platform and its devices before it starts.

With 64-bit types on, JAX can silently turn float32 into float64, and with them off the reverse. So checks in float32
and bfloat16 run where they are off from the start.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from parity.request import Platform, Request
from parity.result import Result
from twinstep.errors import UserError

DEVICE_FLAG = "--xla_force_host_platform_device_count"


def child_environment(x64: bool, devices: int, platform: Platform = "cpu") -> dict[str, str]:
    """This process's environment with JAX's types, its platform and the number of CPU devices set."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICE_FLAG)]
    flags.append(f"{DEVICE_FLAG}={devices}")
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if platform == "cuda" else {}  # some for torch
    return {
        **shared,
        **os.environ,
        "XLA_FLAGS": " ".join(flags),
        "JAX_ENABLE_X64": str(int(x64)),
        "JAX_PLATFORMS": "cpu" if platform == "cpu" else f"{platform},cpu",
    }


def check_in_child(request: Request) -> Result:
    """What `parity.check.check_here` finds, run by `parity.worker`. Raises UserError as that does."""
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "request.json", Path(folder) / "result.json"
        question.write_text(json.dumps(request.to_json()), encoding="utf-8")
        x64 = request.config.train.dtype == "float64"
        done = subprocess.run(
            [sys.executable, "-m", "parity.worker", str(question), str(answer)],
            env=child_environment(x64, request.devices, request.platform),
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode == 2:
            raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
        if done.returncode:
            raise RuntimeError(f"the check's process ended with {done.returncode}:\n{done.stderr}")
        return Result.from_json(json.loads(answer.read_text(encoding="utf-8")))
