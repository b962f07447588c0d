"""Where a check ran, for the report."""

import os
import platform
from importlib.metadata import version

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")


def environment() -> dict[str, str]:
    """Versions, machine and devices, as text."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "jax devices": f"{len(devices)} x {devices[0].device_kind}",
        "jax_enable_x64": str(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
        "jax_default_matmul_precision": str(jax.config.jax_default_matmul_precision),  # type: ignore[attr-defined]
    }
