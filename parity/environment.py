"""Where a check ran, for the report."""

import os
import platform as machine
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import jax

from parity.platforms import describe_torch
from parity.request import Platform

if TYPE_CHECKING:
    import torch

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")


def environment(platform: Platform, devices: Sequence[jax.Device], torch_device: "torch.device") -> dict[str, str]:
    """Versions, machine and the devices of either side, as text."""
    import torch

    return {
        **host(PACKAGES),
        "platform": platform,
        "jax devices": f"{len(devices)} x {devices[0].device_kind}",
        "torch device": describe_torch(platform, torch_device),
        "jax_enable_x64": str(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
        "jax_default_matmul_precision": str(jax.config.jax_default_matmul_precision),  # type: ignore[attr-defined]
        "torch float32 matmul precision": torch.get_float32_matmul_precision(),
    }


def host(packages: Sequence[str]) -> dict[str, str]:
    """The machine, and the versions of what runs on it."""
    return {
        "python": machine.python_version(),
        **{name: version(name) for name in packages},
        "machine": f"{machine.system()} {machine.machine()}, {os.cpu_count()} CPUs",
    }


def use_one_thread() -> None:
    """For a process that does nothing but check one of our small models.

    In matrices as small as these torch's threads wait for each other longer than they compute, and on a machine that
    is busy with something else too each product waits for the other program: five times as long, measured.
    """
    import torch

    torch.set_num_threads(1)
