"""What one side of a pair did, and the folder that holds it.

record.json, record.safetensors    the side and where it ran; torch's: inputs, weights and loss; JAX's: the parameters,
                                   what of torch's feeds them, and the outputs that count
seed-0.json, seed-0.safetensors    the pass from the weights as given; seed-1 and so on in float32 and bfloat16: from
                                   weights that are moved a little
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from parity.lines.line import Line
from parity.pair.carrying import Carried, State
from parity.pair.inputs import Inputs
from parity.pair.loss import Output
from parity.pair.models import Pass
from parity.pair.setup import AUTO, Rules
from parity.record.parts import digest, load_part, save_part
from parity.record.sources import carried_values, read_carried
from parity.rules import Rule
from twinstep.errors import UserError

Side = Literal["torch", "jax"]


class File(NamedTuple):
    """The pair's."""

    name: str
    sha256: str
    notes: list[str]  # on its OPTIONS


class Head(NamedTuple):
    """Of either side."""

    side: Side
    model: str  # the class of torch's module
    dtype: str
    file: str  # the pair's, by its name
    sha256: str  # of that file
    environment: dict[str, str]  # versions, machine, device
    start: str  # digest of `Start`
    weights: list[str]  # digests of torch's weights, one a seed
    projected: bool  # whether the loss is ours
    notes: list[str]
    casts: list[Line]
    narrow: list[str]  # what of JAX's could not be widened


class Start(NamedTuple):
    """What does not depend on the weights."""

    inputs: Inputs
    where: np.ndarray | None
    losses: list[list[str]]  # the outputs that count: in the first loss all, perhaps in a second only the first output
    factors: dict[str, np.ndarray]  # by output: what its numbers count in our loss


class Original(NamedTuple):
    """torch's side."""

    start: Start
    state: State


class Port(NamedTuple):
    """JAX's side."""

    leaves: dict[str, np.ndarray]  # parameters and buffers as given
    carried: Carried
    outputs: list[Output]
    layers: Rules
    where: np.ndarray | None


class Ran(NamedTuple):
    """A pass, and beside it, in float64: the same with the code's own casts at work; else: the same in float64."""

    run: Pass
    beside: Pass | None  # None where that cannot be run

    def map(self, change: Callable[[Pass], Pass]) -> "Ran":
        """Both changed."""
        return Ran(change(self.run), None if self.beside is None else change(self.beside))


@dataclass(frozen=True)
class Recording:
    """One folder; `original` for torch's side, `port` for JAX's."""

    folder: Path
    head: Head
    original: Original | None = None
    port: Port | None = None

    def passes(self, seed: int) -> list[Ran]:
        """From these weights, one for each of the losses."""
        return read_seed(self.folder, seed)[1]

    def weights(self, seed: int) -> dict[str, np.ndarray]:
        """torch's, moved for this seed."""
        return read_seed(self.folder, seed)[0]


def write_seed(folder: Path, seed: int, weights: dict[str, np.ndarray], passes: list[Ran]) -> None:
    """Of the passes after the first only what the loss changes; of none dropout's masks, which no port replays yet."""
    first, *rest = ({name: p and p._replace(masks=())._asdict() for name, p in ran._asdict().items()} for ran in passes)
    again = [{name: p and {k: p[k] for k in OF_LOSS} for name, p in ran.items()} for ran in rest]
    save_part(folder, f"seed-{seed}", {"weights": weights, "passes": [first, *again]})


OF_LOSS = ("loss", "gradients", "param_gradients")


def read_seed(folder: Path, seed: int) -> tuple[dict[str, np.ndarray], list[Ran]]:
    """Raises UserError for files that are damaged or missing."""
    values = load_part(folder, f"seed-{seed}")
    first = values["passes"][0]
    whole = [{name: p and Pass(**{**first[name], **p}) for name, p in ran.items()} for ran in values["passes"]]
    return values["weights"], [Ran(**ran) for ran in whole]


def write_recording(folder: Path, head: Head, original: Original | None = None, port: Port | None = None) -> None:
    """All but the seeds."""
    values: dict[str, Any] = {**head._asdict(), "casts": [asdict(cast) for cast in head.casts]}
    if original is not None:
        values |= {"original": {"start": start_values(original.start), "state": original.state._asdict()}}
    if port is not None:
        carried, outputs = carried_values(port.carried), [one._asdict() for one in port.outputs]
        layers = port.layers if port.layers == AUTO else [asdict(rule) for rule in port.layers]
        values |= {"port": {**port._asdict(), "carried": carried, "outputs": outputs, "layers": layers}}
    save_part(folder, "record", values)


def read_recording(folder: Path, side: Side | None = None) -> Recording:
    """Raises UserError for a folder that is none, is damaged, or holds another than this side."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; pass one that `python -m parity record` wrote")
    values = load_part(folder, "record")
    original, port = values.pop("original", None), values.pop("port", None)
    head = Head(**{**values, "casts": [Line(**cast) for cast in values["casts"]]})
    if side is not None and head.side != side:
        raise UserError(f"{folder} is a recording of the {head.side} side; pass one of the {side} side")
    return Recording(
        folder,
        head,
        None if original is None else Original(read_start(original["start"]), State(**original["state"])),
        None if port is None else read_port(port),
    )


def read_port(values: dict[str, Any]) -> Port:
    """JAX's side from plain values."""
    layers = values["layers"]
    return Port(
        values["leaves"],
        read_carried(values["carried"]),
        [Output(**{**one, "axes": tuple(one["axes"])}) for one in values["outputs"]],
        layers if layers == AUTO else [read_rule(rule) for rule in layers],
        values["where"],
    )


def read_rule(values: dict[str, Any]) -> Rule:
    """From plain values, in which a tuple is a list."""
    given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
    return Rule(**given)


def start_values(start: Start) -> dict[str, Any]:
    """Plain values and arrays."""
    return {**start._asdict(), "inputs": start.inputs._asdict()}


def read_start(values: dict[str, Any]) -> Start:
    """The inverse of `start_values`."""
    inputs = values["inputs"]
    return Start(**{**values, "inputs": Inputs(tuple(inputs["args"]), inputs["kwargs"])})


def start_digest(start: Start) -> str:
    """Equal for equal inputs, rows that count, and losses."""
    return digest(start_values(start))
