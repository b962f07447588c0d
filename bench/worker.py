"""One side of a measurement: `python -m bench.worker MODULE SIDE SPEC`, started by `bench.process`.

Answers each line on standard input by doing the work once and writing one JSON object. What libraries print goes to
standard error.
"""

import importlib
import json
import os
import sys
import time


def main(module: str, side: str, spec: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    work = importlib.import_module(f"bench.{module}").prepare(side, json.loads(spec))
    answer(ready=True)
    for _ in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        result = work()
        answer(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - start_cpu, result=result)


if __name__ == "__main__":
    main(*sys.argv[1:])
