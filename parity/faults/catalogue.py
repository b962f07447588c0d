"""All faults, in the order of the stages at which they arise."""

from parity.faults import (
    adamw,
    algorithms,
    attention,
    bridge,
    chunks,
    clip,
    data,
    decoding,
    devices,
    evaluation,
    islands,
    layers,
    long_sequences,
    loss,
    modes,
    muon,
    real_step,
    resume,
    rewritten_models,
    rewritten_optimizers,
    rewritten_steps,
    rounding,
    schedule,
    sharded,
    sigmoid,
)
from parity.faults.fault import Fault
from parity.result import STAGES

PARTS = (
    data,
    bridge,
    schedule,
    attention,
    long_sequences,
    layers,
    islands,
    loss,
    sigmoid,
    chunks,
    clip,
    adamw,
    algorithms,
    muon,
    modes,
    real_step,
    devices,
    sharded,
    resume,
    evaluation,
    rounding,
    decoding,
    rewritten_models,
    rewritten_optimizers,
    rewritten_steps,
)


def place(fault: Fault) -> int:
    """The stage's number; equivalents come last."""
    return len(STAGES) if fault.stage is None else STAGES.index(fault.stage)


CATALOGUE: tuple[Fault, ...] = tuple(sorted((fault for part in PARTS for fault in part.FAULTS), key=place))
