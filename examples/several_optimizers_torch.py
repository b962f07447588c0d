"""The smallest PyTorch loop with two optimizers: AdamW and Muon."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from torch_ref.muon import Muon


class Model(nn.Module):
    def __init__(self, vocabulary: int, width: int, classes: int):
        super().__init__()
        self.embedding = nn.Embedding(
            vocabulary, width, dtype=torch.float64
        )
        self.linear = nn.Linear(
            width, classes, bias=False, dtype=torch.float64
        )

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embedding(tokens_BT))

    def setup_optimizers(self) -> list[torch.optim.Optimizer]:
        adamw = torch.optim.AdamW(
            self.embedding.parameters(), lr=0.01, weight_decay=0.0
        )
        muon = Muon(
            self.linear.parameters(),
            lr=0.01,
            momentum=0.95,
            weight_decay=0.0,
            steps=5,
            dtype=torch.float64,
        )
        return [adamw, muon]


def main() -> list[float]:
    random = np.random.default_rng(0)
    weights = {
        "embedding.weight": random.normal(size=(100, 32)),
        "linear.weight": random.normal(size=(10, 32)) / 6,
    }
    tokens_BT = torch.tensor(random.integers(0, 100, (4, 10)))
    targets_BT = torch.tensor(random.integers(0, 10, (4, 10)))

    model = Model(vocabulary=100, width=32, classes=10)
    model.load_state_dict(
        {name: torch.tensor(array) for name, array in weights.items()}
    )
    optimizers = model.setup_optimizers()
    model.train()
    losses = []
    for _ in range(5):
        logits_BTV = model(tokens_BT)
        loss = F.cross_entropy(
            logits_BTV.flatten(0, 1), targets_BT.flatten()
        )
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(*main(), sep="\n")
