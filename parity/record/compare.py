"""Two recordings compared: torch's side with JAX's, or one side with itself at another commit, version or precision."""

import time
from pathlib import Path

from parity.ledger import Ledger
from parity.pair import notes
from parity.pair.models import Pass
from parity.pair.stages import NEEDED, compare_pass
from parity.pair.written import judged_pass
from parity.record.pairing import Pairing, narrower_first, one_side, torch_with_jax
from parity.record.recording import Ran, Recording, read_recording
from parity.result import Result
from twinstep.errors import UserError


def compare_folders(one: Path, other: Path) -> Result:
    """The reference is torch's side, or of one side twice the first, or the narrower of two precisions.

    Raises UserError for folders that are damaged, or that did not start from the same weights and inputs.
    """
    started = time.monotonic()
    first, second = read_recording(one), read_recording(other)
    if first.head.projected != second.head.projected:
        raise UserError(f"of {one} and {other} one has `losses` of its own among its OPTIONS; record both with them")
    alike = first.head.side == second.head.side
    if alike:
        first, second = narrower_first(first, second)
    elif first.head.side == "jax":
        first, second = second, first
    sides = (str(first.folder), str(second.folder)) if alike else ("torch", "JAX")
    ledger = Ledger(first.head.dtype, sides=sides)
    pairing = (one_side if alike else torch_with_jax)(ledger, first, second)
    seeds, said, ours = compare_passes(ledger, pairing)
    stages, tensors, divergence = ledger.judge()
    said = [
        *notes.interval(divergence, tensors, ours),
        *of_precisions(first, second),
        *pairing.carried.doubts,
        *said,
        *(notes.of_rounding(tensors) if ledger.dtype == "float64" else []),
        *of_heads(first, second),
    ]
    return Result(
        model=first.head.model,
        dtype=first.head.dtype,
        steps=1,
        seed=0,
        seeds=seeds,
        devices=1,
        stages=stages,
        tensors=tensors,
        curves=[],
        first_divergence=divergence,
        needed=list(NEEDED),
        notes=said,
        environment=environments(first, second),
        seconds=time.monotonic() - started,
        sides=list(sides) if alike else ["PyTorch", "JAX"],
    )


def compare_passes(ledger: Ledger, pairing: Pairing) -> tuple[int, list[str], Pass]:
    """Every seed that both ran. Returns their number, what was left out, and the reference's first pass."""
    wide = ledger.dtype == "float64"
    ours, theirs = passes_of(pairing, 0)
    written = (lambda: held(ours), lambda: held(theirs)) if wide else None
    what = pairing.compared(ours.run, theirs.run)
    truth = None if wide else held(ours)
    ledger.entries |= judged_pass(ledger, what, ours.run, theirs.run, truth, written)[0].entries
    seeds = same_weights(pairing.reference, pairing.port)
    for seed in range(1, seeds):
        again, port = passes_of(pairing, seed)
        compare_pass(ledger, what, again.run, port.run, held(again))
    return seeds, pairing.left_out(what, ours.run, theirs.run), ours.run


def passes_of(pairing: Pairing, seed: int) -> tuple[Ran, Ran]:
    """The reference's and the port's, as far as they can be compared."""
    ours, theirs = pairing.reference.passes(seed), pairing.port.passes(seed)
    return pairing.match(ours[pairing.number], theirs[0])


def held(ran: Ran) -> Pass:
    """The pass beside it. Raises UserError where that could not be run when it was recorded."""
    if ran.beside is None:
        raise UserError("the reference could not be run in float64, without which nothing is judged; record in float64")
    return ran.beside


def same_weights(first: Recording, second: Recording) -> int:
    """How many seeds of both moved the weights alike; the first is compared in any case."""
    alike = [one == other for one, other in zip(first.head.weights, second.head.weights, strict=False)]
    return max(1, alike.index(False) if False in alike else len(alike))


def of_precisions(reference: Recording, port: Recording) -> list[str]:
    """How two precisions are judged."""
    mine, its = reference.head.dtype, port.head.dtype
    if mine == its:
        return []
    return [f"{reference.folder} is in {mine} and {port.folder} in {its}: judged by what {mine} rounds in the former."]


def of_heads(first: Recording, second: Recording) -> list[str]:
    """What each recording says for itself, and whether the file changed between them."""
    heads = first.head, second.head
    found = list(dict.fromkeys(note for head in heads for note in head.notes))
    torch, jax = (
        list(dict.fromkeys(cast for head in heads if head.side == side for cast in head.casts))
        for side in ("torch", "jax")
    )
    found += notes.of_casts(torch, jax)
    found += notes.of_narrow(list(dict.fromkeys(part for head in heads for part in head.narrow)))
    if first.head.side != second.head.side and first.head.sha256 != second.head.sha256:
        files = " and ".join(f"{head.file} ({head.sha256[:8]})" for head in heads)
        found.append(f"The two sides were recorded from different files: {files}.")
    return found


def environments(first: Recording, second: Recording) -> dict[str, str]:
    """Where each of the two ran."""
    shared = {}
    if first.head.side != second.head.side:
        mine, its = first.head.environment, second.head.environment
        shared = {"platform": its["platform"], "jax devices": its["device"], "torch device": mine["device"]}
    return shared | {
        f"{recording.folder}: {name}": text
        for recording in (first, second)
        for name, text in {**recording.head.environment, "file": recording.head.file}.items()
    }
