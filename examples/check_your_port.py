"""A torch model, a nearly right NNX port, and what is wrong in the port."""

import numpy as np
import optax
import torch
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from torch import nn

from parity import compare, nnx_function
from parity.result import Result


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.norm(self.fc1(x_BF))))


class Port(nnx.Module):
    def __init__(self, eps: float, approximate: bool):
        rngs = nnx.Rngs(0)
        self.fc1 = nnx.Linear(64, 32, rngs=rngs)
        self.norm = nnx.LayerNorm(32, epsilon=eps, rngs=rngs)
        self.approximate = approximate
        self.fc2 = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x_BF):
        h_BD = self.norm(self.fc1(x_BF))
        h_BD = nnx.gelu(h_BD, approximate=self.approximate)
        return self.fc2(checkpoint_name(h_BD, "act"))


def convert(state_dict: dict[str, torch.Tensor]) -> dict:
    """torch's weights as the port's: a kernel is (in, out)."""
    w = {name: x.numpy() for name, x in state_dict.items()}
    return {
        "fc1": {"kernel": w["fc1.weight"].T, "bias": w["fc1.bias"]},
        "norm": {"scale": w["norm.weight"], "bias": w["norm.bias"]},
        "fc2": {"kernel": w["fc2.weight"].T, "bias": w["fc2.bias"]},
    }


def check(eps: float, approximate: bool, **adamw: float) -> Result:
    """Every stage of the pair, and of torch's AdamW beside optax's."""
    torch.manual_seed(0)
    function, _ = nnx_function(Port(eps, approximate))
    x_BF = np.random.default_rng(0).normal(size=(8, 64)) * 0.01
    return compare(
        Original(),
        function,
        None,
        [x_BF],
        convert=convert,
        optimizers=(
            lambda params: torch.optim.AdamW(params, lr=1e-3),
            optax.adamw(1e-3, **adamw),
        ),
    )


def show(title: str, result: Result) -> None:
    print(f"== {title} ==\n{result.sentence}")
    for name, stage in result.stages.items():
        if stage.compared:
            print(f"{name:<12} {stage.verdict}")


def main() -> None:
    show("a first port, with JAX's defaults", check(1e-6, True))
    show("with torch's eps", check(1e-5, True))
    show("and torch's GELU", check(1e-5, False))
    show("and torch's weight decay", check(1e-5, False, weight_decay=1e-2))


if __name__ == "__main__":
    main()
