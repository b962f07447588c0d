"""Two optimizers in the smallest loop: the sample that cannot run, the one that does, and an update's directions."""

import jax
import numpy as np
import optax
import torch
import torch.nn.functional as F

from examples import several_optimizers_jax, several_optimizers_torch
from torch_ref.muon import orthogonalize


def shapes_that_fail() -> None:
    print("== wrong ==")
    logits_BTV, targets_B = np.zeros((4, 10, 10)), np.zeros(4, int)
    print(f"logits {logits_BTV.shape}, targets {targets_B.shape}")
    try:
        F.cross_entropy(torch.tensor(logits_BTV), torch.tensor(targets_B))
    except (RuntimeError, ValueError) as error:
        print("torch:", str(error).splitlines()[0])
    try:
        optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_B)
    except (TypeError, ValueError, AssertionError) as error:
        print("optax:", str(error).splitlines()[0])


def shapes_that_work() -> None:
    print("== right ==")
    logits_BTV, targets_BT = np.zeros((4, 10, 10)), np.zeros((4, 10), int)
    flat = F.cross_entropy(torch.tensor(logits_BTV).flatten(0, 1), torch.tensor(targets_BT).flatten())
    each = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
    print(f"torch: logits {(4 * 10, 10)}, targets {(4 * 10,)} -> loss {tuple(flat.shape)}")
    print(f"optax: logits {logits_BTV.shape}, targets {targets_BT.shape} -> {each.shape} -> mean {each.mean().shape}")


def five_steps() -> None:
    print("== losses ==")
    print("step  torch     jax       relative difference")
    pairs = zip(several_optimizers_torch.main(), several_optimizers_jax.main(), strict=True)
    for step, (ours, theirs) in enumerate(pairs, 1):
        within = "<= 1e-14" if abs(ours - theirs) <= 1e-14 * ours else f"{abs(ours - theirs) / ours:.1e}"
        print(f"{step:<5} {ours:.6f}  {theirs:.6f}  {within}")


def describe(name: str, update: torch.Tensor) -> None:
    singular = torch.linalg.svdvals(update)
    print(f"{name:<27} {singular[0] / singular.median():14.1f}  {singular.square().sum() / singular[0].square():11.1f}")


def why_matrices() -> None:
    """The update of a 64 x 96 matrix whose inputs, as activations do, vary mostly along a few directions."""
    print("== directions ==")
    random = np.random.default_rng(0)
    inputs = random.normal(size=(256, 96)) * (np.arange(1, 97) ** -1.0)
    weight = torch.zeros(64, 96, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor(random.integers(0, 64, 256))
    F.cross_entropy(F.linear(torch.tensor(inputs), weight), targets).backward()
    gradient = weight.grad.clone()
    print("update of a 64 x 96 matrix  largest/median  stable rank")
    describe("SGD: the gradient", gradient)
    torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0).step()
    describe("AdamW, first step", weight.detach())
    describe("Muon: orthogonalized", orthogonalize(gradient, 5, torch.float64))


if __name__ == "__main__":
    with jax.enable_x64(True):
        shapes_that_fail()
        shapes_that_work()
    five_steps()
    why_matrices()
