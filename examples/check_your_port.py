"""A torch model, a nearly right NNX port, and what is wrong in the port."""

import numpy as np
import optax
import torch
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from torch import nn

from parity import Rule, carry, compare, nnx_function
from parity.result import Result

# torch's names -> the port's; a weight of (out, in) is transposed to a
# kernel of (in, out).
RULES = (
    Rule(r"(fc\d)\.weight", r"\1.kernel", axes=(1, 0)),
    Rule(r"norm\.weight", "norm.scale"),
    Rule(r"(fc\d|norm)\.bias", r"\1.bias"),
)


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


def check(eps: float, approximate: bool, **adamw: float) -> Result:
    """Every stage of the pair, and of torch's AdamW beside optax's."""
    torch.manual_seed(0)
    original = Original()
    function, params = nnx_function(Port(eps, approximate))
    arrays = {k: v.numpy() for k, v in original.state_dict().items()}
    x_BF = np.random.default_rng(0).normal(size=(8, 64)) * 0.01
    return compare(
        original,
        function,
        carry(arrays, params, RULES),
        [x_BF],
        weights=RULES,
        optimizers=(
            lambda params: torch.optim.AdamW(params, lr=1e-3),
            optax.adamw(1e-3, **adamw),
        ),
    )


def main() -> None:
    for title, result in (
        ("a first port, with JAX's defaults", check(1e-6, True)),
        ("with torch's eps", check(1e-5, True)),
        ("and torch's GELU", check(1e-5, False)),
        (
            "and torch's weight decay",
            check(1e-5, False, weight_decay=1e-2),
        ),
    ):
        print(f"== {title} ==\n{result.sentence}")
        for name, stage in result.stages.items():
            if stage.compared:
                print(f"{name:<12} {stage.verdict}")


if __name__ == "__main__":
    main()
