"""What clipping makes of torch's gradients on both sides: the stage `clip`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import optax
import torch

from parity.broken import described
from parity.capture import to_numpy
from parity.entries import GIVEN, Key
from parity.ledger import Ledger
from parity.pair.recipe import Clip
from twinstep.errors import UserError

SCALES = [10.0**power for power in (1, 2, 3, 4, 6, 8, 12, 16)]  # of the gradients: clipping changes some of them
TORCH_EPS = 1e-6  # which `torch.nn.utils.clip_grad_norm_` adds to the norm, and optax does not
EPS_NOTE = (
    "Clipping differs just by the 1e-6 that torch.nn.utils.clip_grad_norm_ adds to the norm by which it divides, and "
    "optax.clip_by_global_norm does not."
)

Named = dict[str, np.ndarray]


def transformation_of(clip: Clip | None) -> optax.GradientTransformation:
    """JAX's part as an optax transformation; without one it changes nothing."""
    if clip is None:
        return optax.identity()
    theirs: Any = clip[1]
    return theirs if hasattr(theirs, "update") else optax.stateless(lambda gradients, params: theirs(gradients))


def clip_in_place(clip: Clip | None, module: torch.nn.Module) -> None:
    """torch's part on the gradients as they are. Raises UserError if it raises."""
    if clip is None:
        return
    try:
        clip[0]([p for p in module.parameters() if p.grad is not None])
    except Exception as error:
        raise UserError(f"clip[0] raises {described(error)}") from error


def gradients_of(module: torch.nn.Module) -> Named:
    """Copies, of the parameters that have one."""
    return {name: to_numpy(p.grad) for name, p in module.named_parameters() if p.grad is not None}


def clipped(clip: Clip, module: torch.nn.Module, gradients: Mapping[str, np.ndarray]) -> Named:
    """torch's part of other gradients; those of the module stay as they are."""
    held = {name: p.grad for name, p in module.named_parameters()}
    for name, parameter in module.named_parameters():
        if name in gradients:
            parameter.grad = torch.from_numpy(np.array(gradients[name])).to(parameter)
    clip_in_place(clip, module)
    found = gradients_of(module)
    for name, parameter in module.named_parameters():
        parameter.grad = held[name]
    return found


def compare_clipping(
    ledger: Ledger,
    step: int,
    clip: Clip,
    module: torch.nn.Module,
    theirs: Callable[[Named], Named],
    names: set[str],
    notes: list[str],
) -> None:
    """Both sides' clipping of torch's gradients: as they are, and so scaled that it changes them, and does not.

    theirs: the port's, from and to gradients by torch's names. names: those that a leaf holds alone. The others (tied,
    added up) count another number of times in the port's norm: here they are zero.
    """
    gradients = gradients_of(module)
    whole = {name: x if name in names else np.zeros_like(x) for name, x in gradients.items()}
    active = dict[float, bool]()
    for scale in scales(clip, module, whole, step):
        scaled = {name: scale * x for name, x in whole.items()}
        ours, port = clipped(clip, module, scaled), theirs(scaled)
        active[scale] = changes(scaled, ours)
        for name in sorted(names & gradients.keys()):
            times = "" if scale == 1 else f" (gradients times {scale:g})"
            key = Key("clip", f"{name}{times}", GIVEN, f"gradient{times}")
            ledger.enter(key, step, ours[name], np.asarray(port[name], ours[name].dtype))
        if active[scale] and EPS_NOTE not in notes and differs_by_eps(scaled, ours, port, names & gradients.keys()):
            notes.append(EPS_NOTE)
    if step == 0:
        if not any(active.values()) and any(x.any() for x in whole.values()):
            raise UserError(
                "clip[0] changes no gradient, however large; it must clip the .grad of what it gets in place"
            )
        notes.append(said(active))


def scales(clip: Clip, module: torch.nn.Module, gradients: Named, step: int) -> Iterator[float]:
    """1, and at the first step the nearest power of ten at which torch's clipping does what it does not at 1."""
    yield 1.0
    if step > 0:
        return
    active = changes(gradients, clipped(clip, module, gradients))
    for scale in (1 / s if active else s for s in SCALES):
        scaled = {name: scale * x for name, x in gradients.items()}
        if changes(scaled, clipped(clip, module, scaled)) != active:
            yield scale
            return


def changes(before: Named, after: Named) -> bool:
    """Whether clipping changed anything beyond rounding."""
    return any(not np.allclose(after[name], x, rtol=1e-12, atol=0) for name, x in before.items())


def said(active: Mapping[float, bool]) -> str:
    """What was compared, for people."""
    now, *others = active
    if not others:
        return "Clipping changes gradients of every size, so only that was compared."
    words = ("changes", "leaves alone") if active[now] else ("leaves alone", "changes")
    return (
        f"Clipping {words[0]} the gradients of the first step, and {words[1]} {others[0]:g} times them: both compared."
    )


def differs_by_eps(before: Named, ours: Named, theirs: Named, names: set[str]) -> bool:
    """Whether the port's are torch's times (norm + 1e-6) / norm."""
    x, a, b = (np.concatenate([np.ravel(one[name]) for name in sorted(names)]) for one in (before, ours, theirs))
    expected = TORCH_EPS / np.linalg.norm(x)
    return bool(np.allclose(b - a, expected * a, rtol=1e-3, atol=1e-14 * np.abs(a).max()))
