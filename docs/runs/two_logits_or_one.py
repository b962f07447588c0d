"""Softmax over two logits and the sigmoid of their difference: probabilities, losses, gradients, trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F

import jax_impl.losses as jax_losses
import torch_ref.losses as torch_losses


def probabilities() -> None:
    print("== probabilities ==")
    logits = torch.tensor([2.0, 1.0], dtype=torch.float64)
    print("softmax(2, 1)   ", *(f"{p:.4f}" for p in logits.softmax(0)))
    print("sigmoid(2 - 1)  ", f"{torch.sigmoid(logits[0] - logits[1]):.4f}")
    print("sigmoid(1 - 2)  ", f"{torch.sigmoid(logits[1] - logits[0]):.4f}")


def losses_and_gradients() -> None:
    """One example of class 1: z0 = 2, z1 = 1; the one logit is z1 - z0 = -1."""
    print("== gradients ==")
    two = torch.tensor([[2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    one = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1])
    of_two, of_one = (
        torch_losses.softmax_cross_entropy(two, target),
        torch_losses.sigmoid_binary_cross_entropy(one, target),
    )
    of_two.sum().backward()
    of_one.sum().backward()
    print(f"torch  two logits  loss {of_two.item():.6f}  gradient", *(f"{g:.6f}" for g in two.grad[0]))
    print(f"torch  one logit   loss {of_one.item():.6f}  gradient", f"{one.grad.item():.6f}")
    z, z1, y = jnp.array([[2.0, 1.0]]), jnp.array([[-1.0]]), jnp.array([1])
    loss, grad = jax.value_and_grad(lambda z: jax_losses.softmax_cross_entropy(z, y).sum())(z)
    print(f"jax    two logits  loss {loss:.6f}  gradient", *(f"{g:.6f}" for g in grad[0]))
    loss, grad = jax.value_and_grad(lambda z: jax_losses.sigmoid_binary_cross_entropy(z, y).sum())(z1)
    print(f"jax    one logit   loss {loss:.6f}  gradient", f"{grad[0, 0]:.6f}")


def shapes_that_fail() -> None:
    print("== wrong ==")
    logits_B1, targets_B = np.zeros((4, 1)), np.array([0.0, 1.0, 1.0, 0.0])
    print(f"outputs {logits_B1.shape}, targets {targets_B.shape}")
    try:
        F.binary_cross_entropy(torch.sigmoid(torch.tensor(logits_B1)), torch.tensor(targets_B))
    except ValueError as error:
        print("torch raises:", str(error).split(". ")[0])
    square = optax.sigmoid_binary_cross_entropy(logits_B1, targets_B)
    print(f"optax broadcasts: losses {square.shape}, every output against every target")
    print(f"squeezed: losses {optax.sigmoid_binary_cross_entropy(logits_B1[:, 0], targets_B).shape}")


def stability() -> None:
    print("== stability ==")
    print("float32, target 0   logit 10      logit 50      logit 200     gradient at 200")
    values = torch.tensor([10.0, 50.0, 200.0], requires_grad=True)
    zeros = torch.zeros(3)
    by_probability = F.binary_cross_entropy(torch.sigmoid(values), zeros, reduction="none")
    (gradient,) = torch.autograd.grad(by_probability.sum(), values)
    show("torch, of probability", by_probability.detach(), gradient[2])
    by_logit = F.binary_cross_entropy_with_logits(values, zeros, reduction="none")
    (gradient,) = torch.autograd.grad(by_logit.sum(), values)
    show("torch, of logit", by_logit.detach(), gradient[2])
    z = jnp.array([10.0, 50.0, 200.0], jnp.float32)
    naive = lambda z: -jnp.log(1 - jax.nn.sigmoid(z))
    show("jax, of probability", naive(z), jax.grad(lambda z: naive(z).sum())(z)[2])
    stable = lambda z: optax.sigmoid_binary_cross_entropy(z, jnp.zeros_like(z))
    show("optax, of logit", stable(z), jax.grad(lambda z: stable(z).sum())(z)[2])


def show(name: str, losses, gradient) -> None:
    print(f"{name:<22}" + "".join(f"{float(x):<14.4g}" for x in losses) + f"{float(gradient):.4g}")


def descent(steps: int = 20, rate: float = 0.5) -> None:
    """Plain gradient descent on a linear classifier with two logits, and on one with one logit."""
    print("== descent ==")
    random = np.random.default_rng(0)
    inputs_BF, targets_B = torch.tensor(random.normal(size=(32, 5))), torch.tensor(random.integers(0, 2, 32))
    start = torch.tensor(random.normal(size=(2, 5)))
    for factor in (1, 2):
        two, one = start.clone().requires_grad_(), (start[1:] - start[:1]).clone().requires_grad_()
        for _ in range(steps):
            loss_two = torch_losses.softmax_cross_entropy(F.linear(inputs_BF, two), targets_B).mean()
            loss_one = torch_losses.sigmoid_binary_cross_entropy(F.linear(inputs_BF, one), targets_B).mean()
            (grad_two,), (grad_one,) = torch.autograd.grad(loss_two, two), torch.autograd.grad(loss_one, one)
            two.data -= rate * grad_two
            one.data -= factor * rate * grad_one
        gap = abs(loss_two - loss_one) / loss_two
        within = "<= 1e-13" if gap <= 1e-13 else f"{gap:.4f}"
        text = f"rate of the one logit {factor} x: after {steps} steps two logits {loss_two:.6f}"
        print(f"{text}, one logit {loss_one:.6f}, apart {within}")


if __name__ == "__main__":
    probabilities()
    with jax.enable_x64(True):
        losses_and_gradients()
        shapes_that_fail()
    stability()
    descent()
