"""The steps of `tests.helpers.trajectories` in PyTorch, on one process or under torchrun."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from tests.helpers.trajectories import (
    environment,
    load_trajectories,
    make_batches,
    make_config,
    names_of,
    save_trajectories,
)
from torch_ref import parallel, processes, step
from torch_ref.evaluate import evaluate
from torch_ref.input import to_tensors
from torch_ref.models import load_weights, make_model, weight_shapes
from torch_ref.optimizer import clip_by_global_norm, setup_optimizers
from torch_ref.step import eval_step, train_step
from twinstep.config import Config
from twinstep.init import initial_weights


def run(config: Config) -> dict[str, np.ndarray]:
    """Loss of every step; gradients of the last; parameters and buffers after it; each process on its share."""
    model = make_model(config)
    load_weights(model, initial_weights(weight_shapes(model), 0, "nonzero"))
    optimizers = setup_optimizers(config, model)
    wrapped = parallel.wrap(config, model, parallel.choose_mode(config))
    rank, count = processes.shard()
    gradients: dict[str, np.ndarray] = {}

    def observed_clip(model: torch.nn.Module, max_norm: float) -> torch.Tensor:
        names = {name.removeprefix("module."): p for name, p in model.named_parameters()}
        gradients.update({f"gradient.{name}": p.grad.numpy().copy() for name, p in names.items()})
        return clip_by_global_norm(model, max_norm)

    losses = []
    with mock.patch.object(step, "clip_by_global_norm", observed_clip):
        for number, batch in enumerate(make_batches(config)):
            mine = to_tensors({name: np.split(x, count, axis=1)[rank] for name, x in batch.items()})
            metrics = train_step(config, wrapped, optimizers, number, mine)
            losses.append(float(metrics["loss"]))
    model.eval()
    evaluated = evaluate(lambda batch: eval_step(model, batch), [{name: x[0] for name, x in mine.items()}])
    parameters = {f"parameter.{name}": p.numpy(force=True) for name, p in model.named_parameters()}
    buffers = {f"buffer.{n}": b.numpy() for n, b in model.named_buffers() if n in weight_shapes(model)}
    names = [name.removeprefix("module.") for name, _ in wrapped.named_parameters()]
    norms = dict(zip(names, metrics["leaf_norms"].numpy(), strict=True))
    return {
        "loss": np.array(losses),
        "evaluation": np.array([float(x) for x in evaluated]),
        "leaf_norms": np.array([float(norms[name]) for name in sorted(norms)]),
        **{name: np.array(float(x)) for name, x in metrics.items() if "_norm/" in name},
        **gradients,
        **parameters,
        **buffers,
    }


def torchrun(processes: int, runs: list[tuple[str, int]], out: Path) -> dict[str, dict[str, np.ndarray]]:
    """All the runs (case, accumulation) under torchrun; keyed "case/accumulation"."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "tests.helpers.torch_trajectories", str(out), *names_of(runs)]
    done = subprocess.run(command, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_trajectories(out)


def main(out: str, names: list[str]) -> None:
    processes.initialize(Config())
    found = {}
    for name in names:
        case, accumulation = name.split("/")
        found[name] = run(make_config(case, int(accumulation)))
    if processes.shard()[0] == 0:
        save_trajectories(Path(out), found)
    processes.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
