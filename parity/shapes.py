"""The flow of shapes through both frameworks, side by side, from the batch to the scalar loss. Only torch computes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.table import Table

import jax_impl.models
import torch_ref.losses
import torch_ref.models
from jax_impl import step
from parity.capture import capture_torch, tagged_shapes
from parity.check_configs import LEAST_STEPS, subject
from torch_ref.input import to_tensors
from torch_ref.step import forward
from twinstep.config import Config
from twinstep.data import load_data
from twinstep.resolve import fill_in
from twinstep.terminal import table_console

Row = tuple[str, tuple[int, ...] | None, tuple[int, ...] | None]  # name, torch's shape, JAX's


def shape_flow(config: Config, batch: dict[str, np.ndarray]) -> list[Row]:
    """Every array on the way of one micro-batch, in the order of the forward pass; None where a framework has none.

    batch: as the step gets it, each array (A, B, ...); the first micro-step is taken.
    """
    micro = {name: x[0] for name, x in batch.items()}
    torch_flow = {name: tuple(t.shape) for name, t in to_tensors(micro).items()}
    jax_flow = {name: x.shape for name, x in micro.items()}

    reference = torch_ref.models.make_model(config)
    tensors = to_tensors(micro)
    with torch.no_grad(), capture_torch(reference, "logits") as passes:
        sums = torch_ref.losses.loss_sums(forward(reference, tensors), tensors["targets"])
    torch_flow |= {name: x.shape for name, x in passes[0].activations.items()}
    torch_flow |= {"summed loss": tuple(sums.nats.shape), "targets that count": tuple(sums.targets.shape)}

    model = jax_impl.models.make_model(config)
    shapes, tags = tagged_shapes(
        lambda params, buffers: step.summed_loss(params, model, buffers, micro, jax.random.key(0)),
        *(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree) for tree in (model.params, model.buffers)),
    )
    nats, (jax_sums, _) = shapes
    jax_flow |= {name: tag.shape for name, tag in tags.items()}
    jax_flow |= {"summed loss": nats.shape, "targets that count": jax_sums.targets.shape}
    names = [*torch_flow, *(name for name in jax_flow if name not in torch_flow)]
    return [(name, torch_flow.get(name), jax_flow.get(name)) for name in names]


def print_shapes(model: str) -> int:
    """The table for the configuration that `parity check` checks; 1 if a shape differs, else 0.

    Raises UserError for an unknown model.
    """
    config = subject(model, "float32", LEAST_STEPS, 0)
    config = replace(config, train=replace(config.train, accumulation=1))
    data = load_data(config)
    config = fill_in(config, data)
    rows = shape_flow(config, data.train.batch(0))
    table = Table("array", "torch", "JAX", "", title=f"{model}, one micro-batch, from batch to loss", box=None)
    for name, ours, theirs in rows:
        table.add_row(name, text(ours), text(theirs), "" if ours == theirs else "differs")
    console = table_console()
    console.print(table)
    console.print("loss = summed loss / targets that count, a scalar in both")
    return int(any(ours != theirs for _, ours, theirs in rows))


def text(shape: tuple[int, ...] | None) -> str:
    """ "32 × 10"; "scalar" for (), "-" where a framework has no such array."""
    if shape is None:
        return "-"
    return "scalar" if shape == () else " × ".join(map(str, shape))
