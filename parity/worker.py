"""The child process of a check: `python -m parity.worker REQUEST RESULT`, two JSON files; see `parity.child`."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch_ref.parallel
from parity.check import check_watched
from parity.environment import use_one_thread
from parity.platforms import check_platform
from parity.request import Request
from twinstep.errors import run_command


def main(argv: list[str]) -> int:
    """Read the request in the first file, write the result to the second."""
    question, answer = map(Path, argv)
    request = Request.from_json(json.loads(question.read_text(encoding="utf-8")))
    check_platform(request.platform, request.devices)
    # The reference multiplies in full float32, as torch does by itself: what the port is asked for is the port's alone.
    full = replace(request.config.train, matmul_precision="highest")
    torch_ref.parallel.set_precision(replace(request.config, train=full))
    if request.checkpoint is None:
        use_one_thread()
    result = check_watched(request)
    answer.write_text(json.dumps(result.to_json(), allow_nan=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
