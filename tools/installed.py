"""Versions and devices of this environment as one line of JSON: `python -m tools.installed`. torch may be missing."""

import json
import platform
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

NAMES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def installed() -> dict[str, Any]:
    """Distribution -> version, and what each framework sees; None for torch's where it is not installed."""
    import jax

    found: dict[str, Any] = {"python": platform.python_version(), **{name: version(name) for name in NAMES}}
    found |= {"torch": None, "torch devices": None, "torch cuda": None}
    found |= {"jax backend": jax.default_backend(), "jax devices": [d.device_kind for d in jax.devices()]}
    if find_spec("torch"):
        import torch

        cuda = torch.cuda.is_available()
        found |= {"torch": version("torch"), "torch cuda": torch.version.cuda}
        found["torch devices"] = [torch.cuda.get_device_name()] if cuda else ["cpu"]
    return found


if __name__ == "__main__":
    print(json.dumps(installed()))
