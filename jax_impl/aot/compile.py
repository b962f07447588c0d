"""The real train step, lowered and compiled for devices that are not here, and what the compiled program says.

libtpu (extra `tpu-aot`) and JAX's CUDA plugin (extra `gpu-aot`) hold the compilers; nothing runs. XLA's own figures
stand beside ours: they count a loop's body once and a Pallas kernel hardly at all.
"""

import re
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_impl import fsdp, parallel
from jax_impl.aot import hlo, kernels
from jax_impl.aot.absent_cudnn import assumed_cudnn
from jax_impl.aot.roofline import roofline
from jax_impl.mesh import batch_spec, make_mesh, torus_shape
from jax_impl.models import make_model
from jax_impl.models.blockwise import blockwise_attention
from jax_impl.optimizer import make_optimizer
from jax_impl.step import State, init_state, train_step
from jax_impl.tree import flatten
from twinstep.chips import Chip
from twinstep.config import Config, CorpusConfig, GPTConfig, OptimizerConfig, TrainConfig
from twinstep.errors import RunError
from twinstep.flops import flops_per_token, matrix_flops_per_step, parameter_count
from twinstep.resolve import sequence_len

NOT_KNOWN = (
    "Compiled without a card, never run. Not known are: which products a card would give to cuBLAS and in what tiles "
    "(XLA times them there; here its model of the costs gives them to Triton), and cuDNN's workspace, which is not in "
    "the memory."
)


@dataclass(frozen=True)
class AotOptions:
    """What to compile, for which chips."""

    topology: str = "v5e:4x4"
    """TPUs as libtpu names them: v5e:4x4, v6e:16x16, v5p:4x8x8. Or a100, h100, h200, b200, as NVLink domains x hosts x
    GPUs: h100:1x1x8, or h100:2x1x8 for two hosts."""
    depth: int = 20
    """Blocks of the GPT; its width is 64 x depth."""
    parallel: Literal["fsdp", "pmap"] = "fsdp"
    """fsdp: parameters and optimizer state sharded; pmap: replicated on every chip."""
    attention: Literal["kernel", "blockwise"] = "kernel"
    """kernel: what the trainers take on such chips, splash attention or cuDNN's; blockwise: what they take without."""
    batch_per_chip: int = 8
    """Sequences per chip and micro-step."""
    accumulation: int = 1
    """Micro-steps per optimizer step."""
    sequence_len: int = 2048
    """Length of a sequence in tokens."""
    vocab_size: int = 65536
    """Tokens of the vocabulary."""
    remat: bool = True
    """Recompute each block's activations in the backward pass."""
    json: str | None = None
    """File for what is printed, as JSON."""


def make_config(options: AotOptions, chips: int) -> Config:
    """The run that is compiled, on that many chips."""
    return Config(
        model=GPTConfig(depth=options.depth, vocab_size=options.vocab_size, rotary_dtype="bfloat16"),
        data=CorpusConfig(sequence_len=options.sequence_len),
        optimizer=OptimizerConfig(newton_schulz_dtype="bfloat16"),
        train=TrainConfig(
            steps=1000,
            batch_size=options.batch_per_chip * options.accumulation * chips,
            accumulation=options.accumulation,
            dtype="bfloat16",
            remat=options.remat,
            matmul_precision="default",
        ),
    )


def lower_step(options: AotOptions, config: Config, devices: list[Any]) -> tuple[Any, State]:
    """The real train step, traced and lowered for these devices, and its state as shapes with shardings."""
    mode, gpu = options.parallel, devices[0].platform == "gpu"
    attention = parallel.attention(devices[0].platform) if options.attention == "kernel" else blockwise_attention
    parallel.set_precision(config)
    mesh = make_mesh(devices) if mode == "fsdp" else Mesh(np.array(devices), (parallel.AXIS,))
    model = make_model(config, mesh.axis_names, attention, scan_blocks=mode == "fsdp")
    optimizer = make_optimizer(config, model.params, stacked=True, mesh=mesh if mode == "fsdp" else None)
    shapes = jax.eval_shape(partial(init_state, model, optimizer, seed=0), flatten(model.params))
    replicated = NamedSharding(mesh, PartitionSpec())
    by_example = NamedSharding(mesh, batch_spec(mesh, 1))
    if mode == "fsdp":
        shardings = fsdp.state_shardings(shapes, mesh)
        train = parallel.fsdp_train(config, model, optimizer, mesh, shardings)
    else:
        shardings = jax.tree.map(lambda _: replicated, shapes)
        pure_step = partial(train_step, config, model, optimizer, axis_name=parallel.AXIS)
        step = parallel.with_signal(pure_step, partial(jax.lax.pmax, axis_name=parallel.AXIS))
        in_specs = (PartitionSpec(), by_example.spec, PartitionSpec(parallel.AXIS))
        mapped = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec(), check_vma=False)
        train = jax.jit(mapped, donate_argnums=0)
    state = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )
    size = (config.train.accumulation, config.batch_size // config.train.accumulation, sequence_len(config))
    tokens = jax.ShapeDtypeStruct(size, jnp.int32, sharding=by_example)
    signal = jax.ShapeDtypeStruct((len(devices),), jnp.int32, sharding=NamedSharding(mesh, batch_spec(mesh, 0)))
    with assumed_cudnn() if gpu else nullcontext():
        traced = train.trace(state, {"tokens": tokens, "targets": tokens}, signal)
        return traced.lower(lowering_platforms=("cuda" if gpu else "tpu",)), state


def compile_step(options: AotOptions, devices: list[Any], chip: Chip) -> dict[str, Any]:
    """Everything that is printed, under the names that the JSON has. Bytes and operations are per chip."""
    config = make_config(options, len(devices))
    lowered, state = lower_step(options, config, devices)
    found: dict[str, Any] = {
        **{name: value for name, value in asdict(options).items() if name != "json"},
        "chip": chip.kind,
        "chips": len(devices),
        "chip_memory_bytes": chip.memory,
        "parameters": parameter_count(config.model),
        "parameter_bytes": shard_bytes(state.params),
        "optimizer_state_bytes": shard_bytes(state.opt_state),
    }
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([GM]) of", str(error))
        if used is None:
            raise RunError(f"XLA cannot compile the step: {' '.join(str(error).split())[:300]}") from error
        peak = int(float(used[1]) * {"G": 2**30, "M": 2**20}[used[2]])
        return {**found, "compile_seconds": time.perf_counter() - start, "fits": False, "peak_bytes": peak}
    found["compile_seconds"] = time.perf_counter() - start
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    found |= {"fits": peak <= chip.memory, "peak_bytes": peak, "activation_bytes": memory.temp_size_in_bytes}

    text = compiled.as_text()
    exchanges = hlo.collectives(text)
    flops = matrix_flops_per_step(config, options.sequence_len) / len(devices)
    bound = roofline(chip, network_shape(devices), flops, hlo.memory_bytes(text), exchanges)
    model_flops = flops_per_token(config.model, options.sequence_len) * config.batch_size * options.sequence_len
    xla = compiled.cost_analysis() or {}  # there is none for GPUs
    if devices[0].platform == "gpu":
        found |= on_gpu(text, options, config)
    return found | {
        "flops": flops,
        "memory_traffic_bytes": hlo.memory_bytes(text),
        "collectives": [exchange._asdict() for exchange in exchanges],
        "optimizer_collectives": [exchange._asdict() for exchange in hlo.collectives(text, "/optimizer/")],
        "roofline": {
            **{f"{name}_seconds": seconds for name, seconds in bound._asdict().items()},
            "step_seconds": bound.step,
            "bound_by": bound.bound_by,
            "efficiency": bound.efficiency,
            "mfu": model_flops / len(devices) / chip.flops / bound.step,
        },
        "xla": {"flops": xla.get("flops"), "bytes_accessed": xla.get("bytes accessed")},
    }


def network_shape(devices: list[Any]) -> tuple[int, ...]:
    """The sides of the TPUs' torus; of GPUs, how many NVLink domains, and how many GPUs in each."""
    if devices[0].platform == "gpu":
        domains = len({device.partition_index for device in devices})
        return domains, len(devices) // domains
    return torus_shape(devices) or (len(devices),)


def on_gpu(text: str, options: AotOptions, config: Config) -> dict[str, Any]:
    """What is counted for GPUs alone; see `kernels.py`."""
    model = config.model
    assert isinstance(model, GPTConfig)
    sizes = (options.batch_per_chip, options.sequence_len, model.heads, options.vocab_size, options.depth)
    launches = kernels.kernels(text)
    return {
        "kernels": {"all": sum(launches.values()), **launches},
        "products": [product._asdict() for product in kernels.products(text)],
        "large_buffers": [buffer._asdict() for buffer in kernels.large_buffers(text, *sizes)],
        "not_known": NOT_KNOWN,
    }


def shard_bytes(tree: Any) -> int:
    """Bytes on one chip of arrays given as shapes with shardings."""
    return sum(int(np.prod(s.sharding.shard_shape(s.shape))) * s.dtype.itemsize for s in jax.tree.leaves(tree))
