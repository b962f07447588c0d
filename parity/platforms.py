"""Where a check runs: JAX on the platform that was asked for, torch on the GPU beside it where it sees one."""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import jax

from parity.request import Platform
from twinstep.config import Config
from twinstep.errors import UserError
from twinstep.extras import how_to_install

if TYPE_CHECKING:
    import torch

BACKENDS = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}  # what `jax.default_backend` calls them
EXTRAS = {"cuda": "cuda13", "tpu": "tpu"}


def stay_on_cpu() -> None:
    """For a command's own process: an accelerator belongs to the child that checks on it. Before JAX's first array."""
    jax.config.update("jax_platforms", "cpu")


def check_platform(platform: Platform, devices: int) -> None:
    """Raises UserError unless JAX runs on the platform in this process, and on as many devices as it can use."""
    asked = f"--platform {platform}"
    try:
        seen, there = jax.default_backend(), jax.device_count()
    except RuntimeError as error:  # JAX_PLATFORMS names what cannot be started
        raise missing(asked, platform, str(error)) from error
    if seen != BACKENDS[platform]:
        raise missing(asked, platform, f"JAX sees only {jax.devices()[0].device_kind}")
    if platform != "cpu" and devices not in (1, there):
        hint = "leave --devices out" if there == 1 else f"pass 1 or {there}, or hide some of them from JAX"
        raise UserError(f"{asked} --devices {devices}: JAX sees {there}; {hint}")


def jax_device(platform: Platform) -> jax.Device:
    """The platform's first device, in a process in which JAX may see several platforms. Raises UserError for none."""
    try:
        return jax.devices(platform)[0]
    except RuntimeError as error:
        raise missing(f"platform={platform!r}", platform, str(error)) from error


def missing(asked: str, platform: Platform, seen: str) -> UserError:
    """What to do where JAX has no such platform."""
    if platform == "cpu":
        return UserError(f"{asked}: {seen}; set JAX_PLATFORMS=cpu, or add cpu to its platforms")
    seen = seen.partition(" (set JAX_PLATFORMS")[0].rstrip(".")  # its own advice
    return UserError(f"{asked}: {seen}; {how_to_install(EXTRAS[platform])}, or leave the platform out")


def torch_device(platform: Platform) -> "torch.device":
    """torch's device beside JAX's."""
    import torch

    if platform == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def describe_torch(platform: Platform, device: "torch.device") -> str:
    """torch's device by name; on a CPU beside a GPU also why."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    if platform != "cuda":
        return "cpu"
    return "cpu (this torch is built without CUDA)" if torch.version.cuda is None else "cpu (torch sees no GPU)"


def with_orthogonalization(platform: Platform, config: Config) -> Config:
    """One dtype of Muon's orthogonalization for both sides, wherever each runs.

    "auto" is bfloat16 on an accelerator in the trainers. Here it is bfloat16 only in a bfloat16 check: the frameworks
    round it each in its own way, and in a float32 check that would hide whatever comes after.
    """
    if config.optimizer.newton_schulz_dtype != "auto" or config.train.dtype == "float64":
        return config
    narrow = platform != "cpu" and config.train.dtype == "bfloat16"
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if narrow else "float32"
    return replace(config, optimizer=replace(config.optimizer, newton_schulz_dtype=dtype))
