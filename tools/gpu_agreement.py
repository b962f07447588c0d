"""Loss and gradients of one small GPT, in both frameworks on every device here, against torch in float64 on the CPU.

`python -m tools.gpu_agreement` prints a JSON object: for "framework device dtype precision" the relative difference
of the loss, and the largest relative L2 difference of a gradient with its parameter's name. Both sides start from the
same NumPy weights and batch. float32 comes twice: with products in full float32, and as a user gets them by
`--matmul-precision default`, where a GPU may round their inputs to TF32.

Shapes: B batch, T time.
"""

import json
from dataclasses import replace

import jax
import numpy as np
import torch

import jax_impl.parallel
import torch_ref.parallel
from jax_impl.models import load_tree, make_model
from jax_impl.step import summed_loss
from jax_impl.tree import flatten
from torch_ref import models as torch_models
from torch_ref.losses import loss_sums
from twinstep.config import Config
from twinstep.init import initial_weights
from twinstep.presets import PRESETS

Named = dict[str, np.ndarray]

B, T = 4, 300  # long enough that attention is cut into blocks, the last one shorter
ARITHMETIC = (("float64", "highest"), ("float32", "highest"), ("float32", "default"), ("bfloat16", "default"))


def with_arithmetic(dtype: str, precision: str) -> Config:
    """The preset `parity`, grouped key/value heads and all, in one arithmetic."""
    config = PRESETS["parity"]
    return replace(config, train=replace(config.train, dtype=dtype, matmul_precision=precision))


def make_batch(config: Config) -> Named:
    """Random tokens (B, T) and targets, a fifth of them ignored."""
    random = np.random.default_rng(0)
    tokens, targets = random.integers(0, config.model.vocab_size, (2, B, T), dtype=np.int32)
    return {"tokens": tokens, "targets": np.where(random.random((B, T)) < 0.2, -1, targets)}


def torch_gradients(config: Config, weights: Named, batch: Named, device: str) -> tuple[float, Named]:
    """Mean loss in nats, and its gradients in float64."""
    torch_ref.parallel.set_precision(config)
    model = torch_models.make_model(config)
    torch_models.load_weights(model, weights)
    model.to(device)
    placed = {name: torch.from_numpy(array).to(device, torch.int64) for name, array in batch.items()}
    sums = loss_sums(model(placed["tokens"]), placed["targets"])
    loss = sums.nats / sums.targets
    loss.backward()
    return float(loss.detach()), {name: p.grad.cpu().double().numpy() for name, p in model.named_parameters()}


def jax_gradients(config: Config, weights: Named, batch: Named, device: str) -> tuple[float, Named]:
    """The same in JAX."""
    jax_impl.parallel.set_precision(config)
    with jax.default_device(jax.devices(device)[0]):
        model = make_model(config, None, jax_impl.parallel.attention())

        def mean_loss(params):
            nats, (sums, _) = summed_loss(params, model, {}, batch, jax.random.key(0))
            return nats / sums.targets

        loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(load_tree(model.params, weights))
    return float(loss), {name: np.asarray(g, np.float64) for name, g in flatten(gradients).items()}


def difference(found: tuple[float, Named], true: tuple[float, Named]) -> dict[str, float | str]:
    """How far a loss and gradients are from the true ones."""
    assert found[1].keys() == true[1].keys()
    distances = {name: np.linalg.norm(found[1][name] - g) / np.linalg.norm(g) for name, g in true[1].items()}
    worst = max(distances, key=distances.get)
    return {"loss": abs(found[0] - true[0]) / abs(true[0]), "gradient": float(distances[worst]), "parameter": worst}


def main() -> None:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    exact = with_arithmetic(*ARITHMETIC[0])
    weights = initial_weights(torch_models.weight_shapes(torch_models.make_model(exact)), 0, "nonzero")
    batch = make_batch(exact)
    true = torch_gradients(exact, weights, batch, "cpu")
    rows = {}
    for dtype, precision in ARITHMETIC:
        config = with_arithmetic(dtype, precision)
        for device in devices:
            for framework, gradients in (("jax", jax_gradients), ("torch", torch_gradients)):
                found = gradients(config, weights, batch, device)
                rows[f"{framework} {device} {dtype} {precision}"] = difference(found, true)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
