"""Run directories of torch_ref."""

from pathlib import Path

import torch

from parity.formats.run_files import read_files, write_files
from parity.formats.snapshot import Snapshot, optimizer_shapes_of, weight_shapes_of
from torch_ref.checkpoint import load_training_tensors, restore, save, training_tensors
from torch_ref.models import TORCH_ONLY, load_weights, make_model
from torch_ref.optimizer import setup_optimizers
from twinstep.errors import UserError
from twinstep.progress import first_facts
from twinstep.run_dir import choose_step


def read(run: Path, step: int | None) -> Snapshot:
    """Raises UserError if the run or the checkpoint is not there or damaged."""
    step = choose_step(run, step)
    config, tokenizer, files = read_files(run, step)
    model = make_model(config)
    optimizers = setup_optimizers(config, model)
    with torch.random.fork_rng(devices=[]):
        facts = restore(run, config, model, optimizers, step)
    weights = {name: model.state_dict()[name].numpy() for name in weight_shapes_of(config)}
    tensors = training_tensors(model, optimizers)
    for name, tensor in tensors.items():
        if name.endswith("/step") and int(tensor) != step:
            raise UserError(f"{run}: {name} is {int(tensor)} at step {step}; the checkpoint is damaged")
    moments = {name: tensors[name].numpy() for name in optimizer_shapes_of(config) if step > 0}
    return Snapshot(config, step, weights, moments or None, facts, tokenizer, files)


def write(folder: Path, snapshot: Snapshot, out: Path) -> None:
    """Write a run into the empty `folder`, which will be renamed to `out`."""
    config = write_files(folder, snapshot, out)
    model = make_model(config)
    load_weights(model, snapshot.weights)
    for name, tensor in model.state_dict().items():
        if name.endswith(TORCH_ONLY):
            tensor.fill_(snapshot.step * config.train.accumulation)
    optimizers = setup_optimizers(config, model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        tensors = {"generator": torch.get_rng_state()}
        for name, array in (snapshot.optimizer or {}).items():
            tensors[name] = torch.from_numpy(array.copy())
            if name.endswith("/exp_avg"):
                tensors[name.replace("/exp_avg", "/step")] = torch.tensor(float(snapshot.step))
        load_training_tensors(model, optimizers, tensors)
        save(folder, snapshot.step, model, optimizers, snapshot.facts or first_facts(config))
