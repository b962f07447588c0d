"""Where a check ran, for the report."""

import os
import platform
from importlib.metadata import version

import jax
import torch

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


def use_one_thread() -> None:
    """For a process that does nothing but check one of our small models.

    In matrices as small as these torch's threads wait for each other longer than they compute, and on a machine that
    is busy with something else too each product waits for the other program: five times as long, measured.
    """
    torch.set_num_threads(1)
