"""The smallest PyTorch loop: one linear layer, one AdamW."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def main() -> list[float]:
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(2, 10)) / 3, np.zeros(2)
    inputs_BF, targets_B = (
        torch.tensor(random.normal(size=(4, 10))),
        torch.tensor(random.integers(0, 2, 4)),
    )

    model = nn.Linear(10, 2, dtype=torch.float64)
    model.load_state_dict(
        {"weight": torch.tensor(weight), "bias": torch.tensor(bias)}
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.01, weight_decay=0.01
    )
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(inputs_BF), targets_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(*main(), sep="\n")
