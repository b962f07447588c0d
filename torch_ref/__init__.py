"""The same training step in plain PyTorch. Imports no jax.

From a script or a notebook:

    from torch_ref.generate import generate_text
    from torch_ref.train import train
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

from twinstep.extras import needs  # noqa: E402

needs("torch", "torch_ref")

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
    """Loads a module when it is asked for: `import torch_ref` alone loads no framework."""
    if name not in __all__:
        raise AttributeError(f"module 'torch_ref' has no attribute {name!r}")
    return importlib.import_module(f"torch_ref.{name}")
