"""The reference: torch_ref's own functions, watched through torch's hooks. Nothing of it is replaced."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from parity.capture import TorchPass, capture_torch, to_numpy
from parity.side import (
    Batch,
    Captured,
    Differentiated,
    Named,
    Optimized,
    Stepped,
    TrainingState,
    micro_name,
    named_norms,
)
from torch_ref import evaluate, input
from torch_ref.losses import IGNORE
from torch_ref.models import TORCH_ONLY, load_weights, make_model
from torch_ref.muon import Muon
from torch_ref.optimizer import clip_by_global_norm, set_schedule, setup_optimizers
from torch_ref.step import eval_step, summed_gradients, train_step
from twinstep.config import Config
from twinstep.data import Data

# torch.optim's names of the state of one parameter, and ours.
MOMENTS = {"momentum_buffer": "momentum", "exp_avg": "first_moment", "exp_avg_sq": "second_moment"}


class TorchSide:
    """See `parity.side.Side`. What it reports is on the host, wherever the model is."""

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.config, self.device = config, device
        self.model = make_model(config).to(device)
        self.optimizers = setup_optimizers(config, self.model)
        self.names: dict[Any, str] = {p: name for name, p in self.model.named_parameters()}
        self.labels = {
            self.names[p]: group["label"]
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }

    def initial_state(self, weights: Named) -> TrainingState:
        load_weights(self.model, weights)
        for optimizer in self.optimizers:
            optimizer.state.clear()
        return self.state(0)

    def state(self, step: int) -> TrainingState:
        """The state held now; moments that torch makes at the first step only are zeros before it."""
        weights = {n: to_numpy(t) for n, t in self.model.state_dict().items() if not n.endswith(TORCH_ONLY)}
        moments: Named = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    held = optimizer.state.get(p, {})
                    for theirs in moment_names(optimizer):
                        array = to_numpy(held[theirs]) if theirs in held else np.zeros_like(weights[self.names[p]])
                        moments[f"{MOMENTS[theirs]}/{self.names[p]}"] = array
                # Only AdamW counts its steps; Muon and SGD read the loop's.
                count = optimizer.state.get(group["params"][0], {}).get("step", step)
                moments[f"count/{group['label']}"] = np.int32(int(count))
        return TrainingState(weights, moments, step)

    def load(self, state: TrainingState) -> None:
        """Weights and moments into the model and its optimizers, as if they had trained up to `state.step`."""
        load_weights(self.model, state.weights)
        for optimizer in self.optimizers:
            optimizer.state.clear()
            for group in optimizer.param_groups:
                for p in group["params"]:
                    held = {
                        theirs: torch.from_numpy(np.array(state.moments[f"{MOMENTS[theirs]}/{self.names[p]}"])).to(p)
                        for theirs in moment_names(optimizer)
                    }
                    if isinstance(optimizer, torch.optim.AdamW):
                        # torch keeps the count on the host, but for its fused kernel.
                        held["step"] = torch.tensor(float(state.step), device=p.device if group["fused"] else "cpu")
                    if state.step > 0:
                        optimizer.state[p] = held

    def schedule(self) -> Named:
        curves: dict[str, list[float]] = {}
        for step in range(self.config.train.steps):
            set_schedule(self.config, self.optimizers, step)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    for key in ("lr", "weight_decay", *(["momentum"] if isinstance(optimizer, Muon) else [])):
                        name = "learning_rate" if key == "lr" else key
                        curves.setdefault(f"{group['label']} {name}", []).append(group[key])
        return {name: np.array(curve) for name, curve in curves.items()}

    def batches(self, data: Data, start: int, stop: int) -> Iterator[Batch]:
        for batch in input.train_batches(data.train, start, stop):
            yield {name: tensor.numpy() for name, tensor in batch.items()}

    def place(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the model's device."""
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def train_step(self, state: TrainingState, batch: Batch) -> Stepped:
        """The real training step. Gradients are read after each micro-step's accumulation: the last is the step's."""
        self.load(state)
        self.model.train()
        gradients = dict.fromkeys(self.names.values())
        handles = [
            p.register_post_accumulate_grad_hook(lambda p: gradients.__setitem__(self.names[p], to_numpy(p.grad)))
            for p in self.names
        ]
        placed = self.place(input.to_tensors(batch))
        metrics = train_step(self.config, self.model, self.optimizers, state.step, placed)
        for handle in handles:
            handle.remove()
        rate = float(metrics.pop("learning_rate"))
        found = {name: to_numpy(torch.as_tensor(metric)) for name, metric in metrics.items()}
        norms = named_norms([name for name, gradient in gradients.items() if gradient is not None], found)
        return Stepped(found["loss"], found["grad_norm"], rate, norms, gradients, self.state(state.step + 1))

    def train_and_capture(self, state: TrainingState, batch: Batch) -> tuple[Stepped, Captured]:
        """The same, with the activations of its micro-steps and their gradients."""
        with capture_torch(self.model, "logits") as passes:
            stepped = self.train_step(state, batch)
        return stepped, captured_of(passes)

    def differentiate(self, state: TrainingState, batch: Batch) -> Differentiated:
        """The same without the optimizers: the greater part of a small model's step is Muon's."""
        self.load(state)
        self.model.train()
        placed = self.place(input.to_tensors(batch))
        with capture_torch(self.model, "logits") as passes:
            loss = summed_gradients(self.model, placed, (placed["targets"] != IGNORE).sum().clamp(min=1))
        gradients = {name: to_numpy(p.grad) for p, name in self.names.items()}
        norm = clip_by_global_norm(self.model, self.config.optimizer.clip_norm)
        self.model.zero_grad(set_to_none=True)
        return Differentiated(to_numpy(loss), to_numpy(norm), gradients, captured_of(passes))

    def optimize(self, state: TrainingState, gradients: Named) -> Optimized:
        self.load(state)
        for p, name in self.names.items():
            p.grad = torch.from_numpy(np.array(gradients[name])).to(p)
        set_schedule(self.config, self.optimizers, state.step)
        clip_by_global_norm(self.model, self.config.optimizer.clip_norm)
        clipped = {name: to_numpy(p.grad) for p, name in self.names.items()}
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return Optimized(clipped, self.state(state.step + 1))

    def evaluate(self, state: TrainingState, data: Data, limit: int) -> Named:
        self.load(state)
        self.model.eval()
        batches = map(self.place, input.eval_batches(data.validation, limit))
        sums = evaluate.evaluate(lambda batch: eval_step(self.model, batch), batches)
        return {**sums._asdict(), **evaluate.metrics(sums)}


def captured_of(passes: Iterable[TorchPass]) -> Captured:
    """The passes of all micro-steps under the names of one step."""
    captured = Captured()
    for number, micro in enumerate(passes):
        for name, activation in micro.activations.items():
            captured.activations[micro_name(name, number)] = activation
            if name in micro.gradients:
                captured.gradients[micro_name(name, number)] = micro.gradients[name]
    return captured


def moment_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """torch's names of the state that an optimizer keeps for each parameter."""
    if isinstance(optimizer, torch.optim.AdamW):
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if isinstance(optimizer, Muon) else ()
