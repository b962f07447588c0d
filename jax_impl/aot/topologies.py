"""Devices that are not here: TPUs as libtpu describes them, NVIDIA GPUs as JAX's CUDA plugin does.

Neither needs a driver. They describe, and compile for, what is only named.
"""

import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from jax_impl.aot.gpus import GPUS, target_config
from twinstep.errors import UserError
from twinstep.extras import needs

EXAMPLES = f"a TPU as v5e:4x4, or a GPU ({', '.join(GPUS)}) as h100:1x1x8"


def absent_devices(topology: str) -> list[Any]:
    """Descriptions of the chips of a topology. Raises UserError for an unknown one, or without the compiler for it."""
    chip, _, shape = topology.partition(":")
    if chip in GPUS:
        return absent_gpus(chip, shape)
    if re.match(r"v\d|tpu", chip):
        return absent_tpus(topology)
    raise UserError(f"no chip {chip!r} is known of --topology {topology}; pass {EXAMPLES}")


def absent_tpus(topology: str) -> list[Any]:
    """The chips of a slice."""
    if "TPU_LIBRARY_PATH" not in os.environ:  # JAX looks there first
        needs("libtpu", "jax_impl.aot")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud's metadata server where we are
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # a lock for chips, and there are none
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot compile for {topology} ({why}); pass a topology that libtpu knows, such as v5e:4x4"
        ) from error


def absent_gpus(chip: str, shape: str) -> list[Any]:
    """The GPUs of one or several NVLink domains."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", shape):
        raise UserError(
            f"cannot read {shape!r} of --topology {chip}:{shape}; pass NVLink domains x hosts of each x GPUs of a "
            f"host: {chip}:1x1x8 is one host with eight GPUs, {chip}:2x1x8 two such hosts"
        )
    needs("jax_cuda13_plugin", f"jax_impl.aot for a GPU such as {chip}")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # NVIDIA's own libraries are not asked for
    jax.config.update("jax_platforms", "cpu")
    config = target_config(GPUS[chip])
    try:
        return topologies.get_topology_desc(
            f"{chip}:{shape}", platform="cuda", topology=shape, target_config=config
        ).devices
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"cannot compile for {chip}:{shape} ({why}); pass {EXAMPLES}") from error
