"""A whole training recipe of somebody else's: right once, and wrong in each of its parts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from parity import compare
from twinstep.errors import UserError

STEPS = 6
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(STEPS + 1, 5, 4)).astype(np.float32)
Y = RANDOM.integers(0, 3, (STEPS + 1, 5))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, y):
        return self.b(torch.tanh(self.a(x)))


def port(p, x, y):
    return jnp.tanh(x @ p["a"]["w"] + p["a"]["b"]) @ p["b"]["w"] + p["b"]["b"]


def convert(state):
    return {n: {"w": state[f"{n}.weight"].numpy().T, "b": state[f"{n}.bias"].numpy()} for n in ("a", "b")}


LOSSES = (
    lambda output, x, y: nn.functional.cross_entropy(output, y),
    lambda output, x, y: optax.softmax_cross_entropy_with_integer_labels(output, y).mean(),
)


# ------------------------------------------------------------------------------------------ the parts of both recipes
def torch_batches(step):
    return torch.from_numpy(X[step]), torch.from_numpy(Y[step])


def jax_batches(step):
    return X[step], Y[step]


def torch_schedule(optimizer):
    def factor(step):
        return (step + 1) / 3 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def jax_schedule(step, late=0):
    step = step + late
    decay = 0.5 * (1 + jnp.cos(jnp.pi * (step - 2) / (STEPS - 2)))
    return 1e-2 * jnp.where(step < 2, (step + 1) / 3, decay)


def torch_clip(parameters):
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)


def jax_clip(gradients, most=0.5, eps=1e-6):
    norm = optax.tree.norm(gradients)
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, most / (norm + eps)), gradients)


def torch_metrics(output, x, y):
    right = (output.argmax(-1) == y).float()
    return {"accuracy": right.mean().item(), "loss": nn.functional.cross_entropy(output, y).item()}


def jax_metrics(output, x, y, mean=jnp.mean):
    right = (output.argmax(-1) == y).astype(jnp.float32)
    return {"accuracy": right.mean(), "loss": mean(optax.softmax_cross_entropy_with_integer_labels(output, y))}


def optimizers(schedule=jax_schedule, around=lambda optimizer: optimizer):
    return (
        lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1),
        around(optax.adamw(schedule, weight_decay=0.1)),
    )


def compare_recipe(**changed):
    recipe = {
        "optimizers": optimizers(),
        "batches": (torch_batches, jax_batches),
        "schedules": (torch_schedule, jax_schedule),
        "clip": (torch_clip, jax_clip),
        "metrics": (torch_metrics, jax_metrics),
    }
    recipe = {name: part for name, part in {**recipe, **changed}.items() if part is not None}
    options = {"convert": convert, "losses": LOSSES, "steps": STEPS, **recipe}
    return compare(Classifier(), port, None, [X[STEPS], Y[STEPS]], **options)


def test_a_right_recipe_agrees_in_every_stage():
    result = compare_recipe()
    assert result.verdict == "agrees", result.sentence
    silent = [name for name, stage in result.stages.items() if not stage.compared]
    assert silent == ["generation"]
    assert result.stages["data"].compared == 2 * STEPS
    assert result.stages["schedule"].compared == STEPS - 0
    assert {t.tensor for t in result.tensors if t.stage == "evaluation"} == {"accuracy", "loss"}
    assert not any("Not compared" in note for note in result.notes), result.notes
