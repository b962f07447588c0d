"""Runs of the models' own checks in float32 and bfloat16, from seeds that nobody chose, and a process that makes them.

`python -m tests.helpers.low_precision MODEL DTYPE N ...` prints one JSON object per number.
"""

import json
import sys
from dataclasses import replace

from twinstep.config import Config

SEEDS_APART = 100  # a check takes eight seeds, from its own on
STEPS = 5  # the least that shows warm-up, warm-down, a resume and the native start's third step


def draw(model: str, dtype: str, number: int) -> Config:
    from parity.check_configs import subject

    config = subject(model, "float32", STEPS, SEEDS_APART * (number + 1))
    return replace(config, train=replace(config.train, dtype=dtype))


def main(model: str, dtype: str, *numbers: str) -> None:
    from parity.check import SEEDS, check_here
    from parity.environment import use_one_thread
    from parity.faults.run import compile_once
    from parity.request import Request

    use_one_thread()
    with compile_once():
        for number in map(int, numbers):
            result = check_here(Request(draw(model, dtype, number), SEEDS, nudge=False))
            compared = {name: stage.compared for name, stage in result.stages.items()}
            found = {"number": number, "verdict": result.verdict, "sentence": result.sentence, "compared": compared}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
