"""The training step in JAX, Flax NNX and optax. Imports no torch.

From a script or a notebook:

    from jax_impl.generate import generate_text
    from jax_impl.train import train
    from twinstep.config import Config, CorpusConfig, GPTConfig
    from twinstep.generation import GenerateOptions

    result = train(Config(model=GPTConfig(depth=2), data=CorpusConfig(data="texts/")))
    steps, losses = result.metrics["loss"]
    [text] = generate_text(GenerateOptions(run=str(result.run), prompt="Once "))
"""

import importlib
import runpy
from pathlib import Path
from types import ModuleType

# By its path: by its name a user's own twinstep.py would come first, and that is what it looks for.
_shadows = runpy.run_path(str(Path(__file__).parents[1] / "twinstep" / "shadows.py"))
_shadows["check_not_shadowed"](__file__, ("twinstep",))

__all__ = [
    "checkpoint",
    "evaluate",
    "generate",
    "input",
    "losses",
    "models",
    "muon",
    "optimizer",
    "parallel",
    "sampling",
    "schedule",
    "step",
    "train",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> ModuleType:
    """Loads a module when it is asked for: `import jax_impl` alone loads no framework."""
    if name not in __all__:
        raise AttributeError(f"module 'jax_impl' has no attribute {name!r}")
    return importlib.import_module(f"jax_impl.{name}")
