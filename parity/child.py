"""A check in a process of its own, where JAX is set up for its arithmetic and its devices before it starts.

Float32 that silently became float64, or the reverse, would make a check a fake: the legs in float32 and bfloat16 run
where 64-bit types are off. `python -m parity.child REQUEST RESULT` reads a request and writes a result, both JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from parity.result import Result
from twinstep.config import from_dict, to_dict
from twinstep.errors import UserError, run_command

DEVICE_FLAG = "--xla_force_host_platform_device_count"


def child_environment(x64: bool, devices: int) -> dict[str, str]:
    """This process's environment with JAX's types and the number of CPU devices set."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICE_FLAG)]
    flags.append(f"{DEVICE_FLAG}={devices}")
    return {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_ENABLE_X64": str(int(x64))}


def check_in_child(request) -> Result:
    """`check_here` of a `parity.check.Request` in a child process. Raises UserError as that does."""
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "request.json", Path(folder) / "result.json"
        question.write_text(json.dumps({**asdict(request), "config": to_dict(request.config)}), encoding="utf-8")
        x64 = request.config.train.dtype == "float64"
        done = subprocess.run(
            [sys.executable, "-m", "parity.child", str(question), str(answer)],
            env=child_environment(x64, request.devices),
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode == 2:
            raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
        if done.returncode:
            raise RuntimeError(f"the check's process ended with {done.returncode}:\n{done.stderr}")
        return Result.from_json(json.loads(answer.read_text(encoding="utf-8")))


def main(argv: list[str]) -> int:
    """Read the request in the first file, write the result to the second."""
    from parity.check import Request, check_here
    from parity.environment import use_one_thread

    question, answer = map(Path, argv)
    values = json.loads(question.read_text(encoding="utf-8"))
    request = Request(**{**values, "config": from_dict(values["config"])})
    if request.checkpoint is None:
        use_one_thread()
    result = check_here(request)
    answer.write_text(json.dumps(result.to_json(), allow_nan=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
