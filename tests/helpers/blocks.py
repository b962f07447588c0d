"""A torch model of three small blocks, and its weights as ports of it in other libraries hold them."""

import jax
import numpy as np
import torch
from torch import nn

import parity
from parity.capture import tagged_shapes
from parity.scan_names import by_layer

L, D, F, V = 3, 4, 6, 5
PARTS = ("norm", "up", "down")
LEAVES = [f"layers.{i}.{part}" for i in range(L) for part in PARTS]  # in the order in which they run
LAYERS = {*LEAVES, *(f"layers.{i}" for i in range(L)), "head"}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, F), nn.Linear(F, D)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Block() for _ in range(L)), nn.Linear(D, V)

    def forward(self, x):
        for block in self.layers:
            x = block(x)
        return self.head(x)


def torch_blocks() -> Blocks:
    torch.manual_seed(0)
    module = Blocks()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


MODULE = torch_blocks()
X = np.random.default_rng(0).standard_normal((2, D)).astype(np.float32)


def layer(name: str, kernel: str = "kernel", scale: str = "scale", bias: str = "bias", shift: str = "bias") -> dict:
    """The weights of one of torch's layers under the names of another library; a kernel is (in, out)."""
    held = {key: x.detach().numpy() for key, x in MODULE.get_submodule(name).named_parameters()}
    if name.endswith("norm"):
        return {scale: held["weight"], shift: held["bias"]}
    return {kernel: held["weight"].T, bias: held["bias"]}


def blocks(**names: str) -> list[dict]:
    """Those of each block."""
    return [{part: layer(f"layers.{i}.{part}", **names) for part in PARTS} for i in range(L)]


def stacked(trees: list) -> dict:
    """One tree of leaves with a leading axis of layers."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def layers_named(function, params) -> set[str]:
    """The layers of torch that have a tag, by their names alone; nothing is computed."""
    _, tags = tagged_shapes(function, params, X)
    return {name.replace("layers_", "layers.") for name in by_layer(LAYERS, tags)}


def compared(function, params) -> tuple[str, str, set[str]]:
    """The verdict, the first tensor that diverges ("" for none), and the layers of torch that were compared."""
    result = parity.compare(MODULE, function, params, [X])
    named = {tensor.tensor for tensor in result.tensors if tensor.stage == "activations"} - {"output"}
    return result.verdict, result.first_divergence.tensor if result.first_divergence else "", named
