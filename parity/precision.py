"""The size of an error may name its cause: float32 products that an accelerator rounds before it multiplies.

By default JAX lets a GPU round the inputs of float32 products to TF32, ten bits of mantissa, and a TPU to bfloat16,
seven bits. torch rounds neither unless it is told to.
"""

from dataclasses import replace
from typing import NamedTuple

from parity.request import Platform
from parity.result import Divergence
from twinstep.config import TrainConfig


class Rounding(NamedTuple):
    """How float32 products may be computed on a platform, and the relative error of a rounded input at most."""

    name: str
    error: float


ROUNDINGS = {"cuda": Rounding("TF32 (ten bits of mantissa)", 2.0**-11), "tpu": Rounding("bfloat16 passes", 2.0**-8)}
FACTOR = 8  # an error of one product is half of its inputs' largest; through some layers it grows
STAGES = ("activations", "loss", "gradients", "update", "parameters", "trajectory", "evaluation")  # with products

MEND = (
    "pass --matmul-precision highest; in code of your own set jax_default_matmul_precision to 'highest', "
    "and in torch torch.backends.cuda.matmul.allow_tf32 to False"
)


def with_hint(first: Divergence | None, train: TrainConfig, platform: Platform) -> Divergence | None:
    """The divergence with the likely cause and its mend, where its size is that of rounded products.

    Only where products may be rounded: in float32, with another --matmul-precision than highest.
    """
    rounding = ROUNDINGS.get(platform)
    if first is None or rounding is None or first.stage not in STAGES:
        return first
    if train.dtype != "float32" or train.matmul_precision == "highest":
        return first
    if not rounding.error / FACTOR <= first.relative_l2 <= rounding.error * FACTOR:
        return first
    cause = f"An error of this size fits float32 products in {rounding.name} on one side"
    return replace(first, hint=f"{cause}: {MEND}.")
