"""NVIDIA GPUs as XLA's compiler sees them, so that it can compile for one that is not there.

The figures are those of openxla/xla, xla/backends/gpu/target_config/specs (a100_sxm_80, h100_sxm, h200 and b200).
"""

from typing import NamedTuple


class Gpu(NamedTuple):
    """One card, SXM variant. Sizes in bytes."""

    device_kind: str  # as CUDA and so JAX name it
    capability: int  # the major number of its compute capability
    cores: int  # streaming multiprocessors
    units: int  # float32 units of a core
    shared_memory: int  # of a core
    shared_memory_of_block: int  # the most that one block may ask for
    l2_cache: int
    clock: float  # GHz
    memory: int
    bandwidth: int  # bytes/s


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 166912, 41943040, 1.41, 85100068864, 2039040000000),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 232448, 52428800, 1.98, 84942979072, 3352320000000),
    "h200": Gpu("NVIDIA H200", 9, 132, 128, 233472, 232448, 52428800, 1.98, 151397597184, 4800000000000),
    "b200": Gpu("NVIDIA B200", 10, 148, 128, 233472, 232448, 132644864, 1.965, 191514411008, 7672320000000),
}


def target_config(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto as text. The versions are those of CUDA 13; cuDNN's is not read in compiling."""
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability} minor: 0 }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block_optin: {gpu.shared_memory_of_block}
  l2_cache_size: {gpu.l2_cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {gpu.bandwidth}
  shared_memory_per_block: 49152
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.device_kind}"
"""
