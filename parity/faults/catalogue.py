"""All faults, in the order of the stages at which they arise."""

from parity.faults import (
    adamw,
    attention,
    bridge,
    clip,
    data,
    devices,
    layers,
    loss,
    modes,
    muon,
    resume,
    rounding,
    schedule,
)
from parity.faults.fault import Fault
from parity.result import STAGES

PARTS = (data, bridge, schedule, attention, layers, loss, clip, adamw, muon, modes, devices, resume, rounding)


def place(fault: Fault) -> int:
    """The stage's number; equivalents come last."""
    return len(STAGES) if fault.stage is None else STAGES.index(fault.stage)


CATALOGUE: tuple[Fault, ...] = tuple(sorted((fault for part in PARTS for fault in part.FAULTS), key=place))
