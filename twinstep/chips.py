"""What one accelerator can do, from the makers' data sheets: the ceilings of a roofline and of MFU.

TPU figures are those of the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" in Google Cloud's TPU
documentation (docs.cloud.google.com/tpu/docs). Links are the 45 and 90 GB/s that "How to Scale Your Model"
(jax-ml.github.io/scaling-book, chapter "TPUs") reckons with; the pages' totals per chip, both directions of four or
six links, come to 50 and 100. A TPU7x is two devices to JAX, each with half of its figures, and we do not model how
they are linked. GPU figures are those of NVIDIA's data sheets, without sparsity, of the SXM variant where there are
several (A100 of 80 GB, H100, H200, HGX B200); a GB is 10^9 bytes, a little less than CUDA then shows. NVLink's totals
of 600, 900 and 1,800 GB/s per GPU are of both directions. Between hosts we assume the network of NVIDIA's own DGX
machines: InfiniBand with one adapter per GPU, of 200 Gb/s beside an A100 and 400 Gb/s beside the others. T4 and V100
have no bfloat16 units, theirs is float16's.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """One of JAX's devices. Rates are peaks; 0: not modelled.

    A TPU's links go to its neighbours in a torus. A GPU's one link is NVLink, to a switch, and `network` goes to the
    GPUs beyond it.
    """

    kind: str  # a part of JAX's device_kind
    flops: float  # bfloat16 matrix products, FLOP/s
    memory: float = 0  # bytes
    bandwidth: float = 0  # of that memory, bytes/s
    link: float = 0  # one link in one direction, bytes/s
    dims: int = 0  # dimensions of the torus; 0: a switch
    network: float = 0  # in one direction, bytes/s


GIB = 2**30

CHIPS = (
    Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 45e9, 3),
    Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 45e9, 2),
    Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 45e9, 2),
    Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 90e9, 3),
    Chip("TPU v6 lite", 918e12, 32 * GIB, 1638e9, 90e9, 2),
    Chip("TPU v6e", 918e12, 32 * GIB, 1638e9, 90e9, 2),
    Chip("TPU7x", 2307e12 / 2),
    Chip("A100", 312e12, 80e9, 2039e9, 300e9, network=25e9),
    Chip("H100", 989e12, 80e9, 3350e9, 450e9, network=50e9),
    Chip("H200", 989e12, 141e9, 4800e9, 450e9, network=50e9),
    Chip("B200", 2250e12, 180e9, 7700e9, 900e9, network=50e9),
    Chip("L4", 121e12),
    Chip("T4", 65e12),
    Chip("V100", 125e12),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip whose name is the longest part of `device_kind`; None for an unknown one."""
    known = [chip for chip in CHIPS if chip.kind in device_kind]
    return max(known, key=lambda chip: len(chip.kind)) if known else None
