"""One gradient on two devices by pmap, shard_map, jit with shardings and DDP; and what a mean of means is."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from docs.runs._regression import batch, start
from jax_impl.losses import IGNORE, softmax_cross_entropy

N, AXIS = 2, "data"
REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(AXIS)


def summed_loss(weight_VF, inputs_BF, targets_B):
    return softmax_cross_entropy(inputs_BF @ weight_VF.T, targets_B).sum()


def mean_loss(weight_VF, inputs_BF, targets_B):
    return summed_loss(weight_VF, inputs_BF, targets_B) / (targets_B != IGNORE).sum()


def by_pmap(weight_VF, inputs_BF, targets_B):
    """Each device computes the gradient of its shard; `psum` adds gradients and counts. The batch has a device axis."""

    def on_device(weight_VF, inputs_BF, targets_B):
        grad = jax.grad(summed_loss)(weight_VF, inputs_BF, targets_B)
        return jax.lax.psum(grad, AXIS) / jax.lax.psum((targets_B != IGNORE).sum(), AXIS)

    step = jax.pmap(on_device, axis_name=AXIS, in_axes=(None, 0, 0), out_axes=None)
    return step(weight_VF, inputs_BF.reshape(N, -1, inputs_BF.shape[1]), targets_B.reshape(N, -1))


def by_shard_map(weight_VF, inputs_BF, targets_B, sum_again=False):
    """The same without a device axis. The weight is replicated, so its gradient comes out summed over the devices."""

    def on_device(weight_VF, inputs_BF, targets_B):
        grad = jax.grad(summed_loss)(weight_VF, inputs_BF, targets_B)
        grad = jax.lax.psum(grad, AXIS) if sum_again else grad
        return grad / jax.lax.psum((targets_B != IGNORE).sum(), AXIS)

    mesh = Mesh(np.array(jax.devices()), AXIS)
    specs = REPLICATED, SHARDED, SHARDED
    step = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=REPLICATED))
    return step(weight_VF, inputs_BF, targets_B)


def by_sharding(weight_VF, inputs_BF, targets_B, weight_spec=REPLICATED):
    """The code of one device; the arrays say where they lie and the compiler adds the communication."""
    mesh = Mesh(np.array(jax.devices()), AXIS)
    weight_VF = jax.device_put(weight_VF, NamedSharding(mesh, weight_spec))
    inputs_BF, targets_B = jax.device_put((inputs_BF, targets_B), NamedSharding(mesh, SHARDED))
    step = jax.jit(jax.grad(mean_loss), out_shardings=NamedSharding(mesh, weight_spec))
    return step(weight_VF, inputs_BF, targets_B)


def by_fsdp(weight_VF, inputs_BF, targets_B):
    """As `by_sharding`, with the weight and its gradient sharded as well."""
    return by_sharding(weight_VF, inputs_BF, targets_B, SHARDED)


def on_ddp() -> dict[str, np.ndarray]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(N)]
    done = subprocess.run([*command, "-m", "docs.runs._ddp"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"torchrun ended with {done.returncode}:\n{done.stderr}")
    return {name: np.array(grad) for name, grad in json.loads(done.stdout).items()}


def within(found: np.ndarray, expected: np.ndarray) -> str:
    gap = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    return "<= 1e-14" if gap <= 1e-14 else f"{gap:.4f}"


def show(name: str, found, expected) -> None:
    shape = f"{found.addressable_shards[0].data.shape}" if isinstance(found, jax.Array) else ""
    print(f"{name:<44} {within(np.asarray(found), expected):<12} {shape}".rstrip())


def same_gradient() -> None:
    print("== gradient ==")
    weight_VF, (inputs_BF, targets_B) = jnp.asarray(start()), batch()
    expected = np.asarray(jax.grad(mean_loss)(weight_VF, inputs_BF, targets_B))
    print(f"{'two devices, beside one':<44} {'difference':<12} on each device")
    show("pmap, psum of sums and counts", by_pmap(weight_VF, inputs_BF, targets_B), expected)
    show("shard_map", by_shard_map(weight_VF, inputs_BF, targets_B), expected)
    show("jit, batch sharded", by_sharding(weight_VF, inputs_BF, targets_B), expected)
    show("jit, batch and weight sharded (fsdp)", by_fsdp(weight_VF, inputs_BF, targets_B), expected)
    ddp = on_ddp()
    show("DDP, processes x sum / count of all", ddp["mean over all"], expected)
    print("== wrong ==")
    parts = zip(np.split(inputs_BF, N), np.split(targets_B, N), strict=True)
    halves = [jax.grad(mean_loss)(weight_VF, inputs, targets) for inputs, targets in parts]
    print(f"{'two devices, beside one':<44} difference")
    show("DDP, each process its own mean", ddp["mean of means"], expected)
    show("shard_map, psum of the gradient as well", by_shard_map(weight_VF, inputs_BF, targets_B, True), expected)
    show("the mean of two means, by hand", np.mean(halves, axis=0), expected)


def communication() -> None:
    """What the compiler put in, read off the compiled step."""
    print("== communication ==")
    mesh = Mesh(np.array(jax.devices()), AXIS)
    inputs_BF, targets_B = jax.device_put(batch(), NamedSharding(mesh, SHARDED))
    for name, spec in {"weight replicated": REPLICATED, "weight sharded": SHARDED}.items():
        weight_VF = jax.device_put(start(), NamedSharding(mesh, spec))
        step = jax.jit(jax.grad(mean_loss), out_shardings=NamedSharding(mesh, spec))
        text = step.lower(weight_VF, inputs_BF, targets_B).compile().as_text()
        found = Counter(re.findall(r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all)\(", text))
        print(f"{name:<24}", ", ".join(sorted(found)))


if __name__ == "__main__":
    with jax.enable_x64(True):
        same_gradient()
        communication()
