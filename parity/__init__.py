"""The parity engine: does the JAX port compute what the PyTorch original does, and if not, where do they diverge first?

`parity.compare` checks any torch module against any JAX function, and finds by itself which array feeds which leaf;
`parity.linen_function` and `parity.nnx_function` make functions of Flax modules that name their layers. For those who
want rules, `parity.Rule` maps names, and `parity.carry` carries weights by them. `python -m parity compare FILE.py`
checks a pair in a file, `python -m parity check` our own models.

The smallest use: a torch Linear, whose weight is (out, in), beside a function with a kernel (in, out).

    module = torch.nn.Linear(5, 3)
    params = {"kernel": module.weight.detach().numpy().T, "bias": module.bias.detach().numpy()}
    x = np.random.default_rng(0).standard_normal((4, 5))
    result = parity.compare(module, lambda params, x: x @ params["kernel"] + params["bias"], params, [x])
    print(result.sentence)  # the first stage and tensor that differ, or that all agree
"""

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

# By its path: by its name a user's own twinstep.py would come first, and that is what it looks for.
_shadows = runpy.run_path(str(Path(__file__).parents[1] / "twinstep" / "shadows.py"))
_shadows["check_not_shadowed"](__file__, ("twinstep", "jax_impl", "torch_ref"))

from twinstep.extras import needs  # noqa: E402

if TYPE_CHECKING:
    from parity.adapters.linen import linen_function
    from parity.adapters.nnx import nnx_function, nnx_function_with_buffers
    from parity.pair.compare import compare
    from parity.weights import Rule, carry

__all__ = ["Rule", "carry", "compare", "linen_function", "nnx_function", "nnx_function_with_buffers"]

HOMES = {
    "Rule": "weights",
    "carry": "weights",
    "compare": "pair.compare",
    "linen_function": "adapters.linen",
    "nnx_function": "adapters.nnx",
    "nnx_function_with_buffers": "adapters.nnx",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Loads what is asked for, and with it both frameworks, only then: `python -m parity --help` needs neither."""
    if name not in HOMES:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    needs("torch", "parity")
    import importlib

    return getattr(importlib.import_module(f"parity.{HOMES[name]}"), name)
