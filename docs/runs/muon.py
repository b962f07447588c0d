"""Muon from momentum to Newton-Schulz, and how far the published Muons are from twinstep's."""

import inspect
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import torch

from jax_impl.muon import COEFFICIENTS, EPS, muon, orthogonalize
from torch_ref.muon import Muon
from torch_ref.muon import orthogonalize as torch_orthogonalize
from twinstep.config import OptimizerConfig

IMAGES = Path(os.environ.get("TWINSTEP_IMAGES", "docs/images"))
RATE, MOMENTUM, STEPS = 0.02, 0.95, 3
COMMON = {"lr": RATE, "momentum": MOMENTUM, "weight_decay": 0.0}
IN_BFLOAT16 = ("Keller Jordan, nanochat (bfloat16)", "torch.optim.Muon (bfloat16)", "  adjust_lr_fn='match_rms_adamw'")


def gradient_like(rows: int, columns: int, seed: int) -> np.ndarray:
    """A matrix with singular values from 1 down to 1e-3, as gradients have."""
    random = np.random.default_rng(seed)
    u, _, vt = np.linalg.svd(random.normal(size=(rows, columns)), full_matrices=False)
    return (u * np.geomspace(1, 1e-3, min(rows, columns))) @ vt


def iterations() -> None:
    print("== iterations ==")
    x = gradient_like(64, 96, 0)
    print("steps  largest  median  smallest  torch against jax")
    spectra = {}
    for steps in range(6):
        ours = np.asarray(orthogonalize(jnp.asarray(x), steps, jnp.dtype("float64")))
        theirs = torch_orthogonalize(torch.tensor(x), steps, torch.float64).numpy()
        spectra[steps] = s = np.linalg.svd(ours, compute_uv=False)
        gap = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        print(f"{steps:<6} {s.max():.4f}   {np.median(s):.4f}  {s.min():.4f}    {'<= 1e-13' if gap <= 1e-13 else gap}")
    draw(spectra)


def draw(spectra: dict[int, np.ndarray]) -> None:
    a, b, c = COEFFICIENTS
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for steps in (0, 1, 3, 5):
        left.semilogy(np.sort(spectra[steps])[::-1], label=f"iterations: {steps}" if steps else "before")
    left.set(title="singular values of one update", xlabel="number", ylabel="singular value")
    left.legend()
    x = np.linspace(0, 1, 400)
    y = x
    for steps in range(1, 6):
        y = a * y + b * y**3 + c * y**5
        if steps in (1, 3, 5):
            right.plot(x, y, label=f"iterations: {steps}")
    right.axhline(1, color="grey", linewidth=0.5)
    right.set(title="what iterations do to a singular value", xlabel="before", ylabel="after")
    right.legend()
    figure.tight_layout()
    figure.savefig(IMAGES / "muon.png", dpi=110)


def twinstep(gradients: list[np.ndarray], start: np.ndarray) -> list[np.ndarray]:
    constant = optax.constant_schedule
    return of_optax(
        muon(constant(RATE), constant(MOMENTUM), constant(0.0), steps=5, dtype=jnp.dtype("float64")), gradients, start
    )


def of_optax(
    optimizer: optax.GradientTransformation, gradients: list[np.ndarray], start: np.ndarray
) -> list[np.ndarray]:
    """Updates of every step."""
    params = {"w": jnp.asarray(start)}
    state, updates = optimizer.init(params), []
    for g in gradients:
        update, state = optimizer.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, update)
        updates.append(np.asarray(update["w"]))
    return updates


def of_torch(make, gradients: list[np.ndarray], start: np.ndarray) -> list[np.ndarray]:
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer, updates = make([weight]), []
    for g in gradients:
        before, weight.grad = weight.detach().clone(), torch.tensor(g)
        optimizer.step()
        updates.append((weight.detach() - before).numpy())
    return updates


def keller_jordan(gradients: list[np.ndarray], dtype: torch.dtype) -> list[np.ndarray]:
    """The rule of github.com/KellerJordan/Muon, written down again; nanochat's is the same with no weight decay."""
    buffer, updates = np.zeros_like(gradients[0]), []
    for g in gradients:
        buffer = MOMENTUM * buffer + (1 - MOMENTUM) * g
        direction = torch_orthogonalize(torch.tensor((1 - MOMENTUM) * g + MOMENTUM * buffer), 5, dtype).double().numpy()
        updates.append(-RATE * max(1, g.shape[0] / g.shape[1]) ** 0.5 * direction)
    return updates


def shown(gap: float, rounded: bool) -> str:
    """A bound where the digits are those of float64's rounding, or of bfloat16's, which differ between processors."""
    if rounded:
        return "< 0.2" if gap < 0.2 else "< 1" if gap < 1 else "> 1"
    return "<= 1e-13" if gap <= 1e-13 else f"{gap:.2g}"


def differences() -> None:
    """Relative L2 distance of each update from twinstep's, in float64 unless said otherwise."""
    print("== differences ==")
    print(f"{'update of':<42} {'shape':<9} {'step 1':>8} {'step 2':>8} {'step 3':>8} {'size':>6}")
    for shape in ((64, 96), (96, 64)):
        gradients = [gradient_like(*shape, seed) for seed in range(1, STEPS + 1)]
        start = gradient_like(*shape, 9)
        ours = twinstep(gradients, start)
        contrib = optax.contrib.muon(RATE, beta=MOMENTUM)
        torch_or_in = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
        mirrored = optax.contrib.muon(RATE, beta=MOMENTUM, muon_weight_dimension_numbers={"w": torch_or_in})
        rows = {
            "torch_ref.Muon": of_torch(lambda p: Muon(p, **COMMON, steps=5, dtype=torch.float64), gradients, start),
            "Keller Jordan, nanochat (float64)": keller_jordan(gradients, torch.float64),
            "Keller Jordan, nanochat (bfloat16)": keller_jordan(gradients, torch.bfloat16),
            "torch.optim.Muon (bfloat16)": of_torch(lambda p: torch.optim.Muon(p, **COMMON), gradients, start),
            "  adjust_lr_fn='match_rms_adamw'": of_torch(
                lambda p: torch.optim.Muon(p, **COMMON, adjust_lr_fn="match_rms_adamw"), gradients, start
            ),
            "optax.contrib.muon": of_optax(contrib, gradients, start),
            "  told that weights are (out, in)": of_optax(mirrored, gradients, start),
        }
        for name, updates in rows.items():
            gaps = [np.linalg.norm(u - o) / np.linalg.norm(o) for u, o in zip(updates, ours, strict=True)]
            size = np.linalg.norm(updates[0]) / np.linalg.norm(ours[0])
            text = " ".join(f"{shown(gap, rounded=name in IN_BFLOAT16):>8}" for gap in gaps)
            print(f"{name:<42} {shape[0]}x{shape[1]:<6} {text} {size:>6.2f}")


def defaults() -> None:
    """The defaults of the installed versions; what "match_rms_adamw" does, from the size of one update."""
    print("== defaults ==")
    o = OptimizerConfig()
    torch_defaults = inspect.signature(torch.optim.Muon.__init__).parameters
    optax_defaults = inspect.signature(optax.contrib.muon).parameters
    print(f"{'':<20} {'rate':>8} {'momentum':>13} {'eps':>7} {'decay':>6}")
    momentum = f"{o.momentum_start} to {o.momentum_end}"
    print(f"{'twinstep':<20} {o.matrix_lr:>8} {momentum:>13} {EPS:>7} {o.matrix_weight_decay:>6}")
    row = [torch_defaults[name].default for name in ("lr", "momentum", "eps", "weight_decay")]
    print(f"{'torch.optim.Muon':<20} {row[0]:>8} {row[1]:>13} {row[2]:>7} {row[3]:>6}")
    row = [optax_defaults[name].default for name in ("beta", "eps", "weight_decay")]
    print(f"{'optax.contrib.muon':<20} {'none':>8} {row[0]:>13} {row[1]:>7} {row[2]:>6}")
    ones = np.eye(96, 64)
    plain, matched = (
        of_torch(lambda p, way=way: torch.optim.Muon(p, **COMMON, adjust_lr_fn=way), [ones], ones)[0]
        for way in ("original", "match_rms_adamw")
    )
    factor = np.linalg.norm(matched) / np.linalg.norm(plain) * (96 / 64) ** 0.5 / 96**0.5
    print(f"match_rms_adamw: the orthogonal matrix times {factor:.1f} sqrt(max(rows, columns))")


if __name__ == "__main__":
    with jax.enable_x64(True):
        iterations()
        differences()
        defaults()
