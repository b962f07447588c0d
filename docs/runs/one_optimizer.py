"""One AdamW in both frameworks; and what the defaults would do."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from examples import one_optimizer_jax, one_optimizer_torch


def five_steps() -> None:
    print("== losses ==")
    print("step  torch     jax       relative difference")
    for step, (a, b) in enumerate(zip(one_optimizer_torch.main(), one_optimizer_jax.main(), strict=True), 1):
        within = "<= 1e-14" if abs(a - b) <= 1e-14 * a else f"{abs(a - b) / a:.1e}"
        print(f"{step:<5} {a:.6f}  {b:.6f}  {within}")


def defaults() -> None:
    print("== defaults ==")
    of_torch = inspect.signature(torch.optim.AdamW).parameters
    of_optax = inspect.signature(optax.adamw).parameters
    print(f"{'':<14} torch.optim.AdamW  optax.adamw")
    rows = {
        "learning rate": (of_torch["lr"].default, "must be given"),
        "betas": (of_torch["betas"].default, (of_optax["b1"].default, of_optax["b2"].default)),
        "eps": (of_torch["eps"].default, of_optax["eps"].default),
        "weight decay": (of_torch["weight_decay"].default, of_optax["weight_decay"].default),
    }
    for name, (a, b) in rows.items():
        print(f"{name:<14} {a!s:<18} {b}")


def drift(steps: int = 1000, rate: float = 0.01) -> None:
    """A weight of 1 without any gradient: only the decay moves it."""
    print("== drift ==")
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    of_torch = torch.optim.AdamW([weight], lr=rate)
    of_optax, params = optax.adamw(rate), jnp.ones(1, jnp.float64)
    state = of_optax.init(params)
    update = jax.jit(of_optax.update)
    for _ in range(steps):
        weight.grad = torch.zeros_like(weight)
        of_torch.step()
        updates, state = update(jnp.zeros(1, jnp.float64), state, params)
        params = optax.apply_updates(params, updates)
    print(f"a weight of 1 after {steps} steps at rate {rate} with no gradient, each with its default decay:")
    print(f"torch.optim.AdamW  {weight.item():.4f}")
    print(f"optax.adamw        {np.asarray(params)[0]:.4f}")


if __name__ == "__main__":
    five_steps()
    defaults()
    with jax.enable_x64(True):
        drift()
