"""What the tests of the optimizers share: a configuration of every model, gradients, and AdamW in NumPy."""

import numpy as np

from twinstep.config import Config, EmbeddingConfig, GPTConfig, LinearConfig, MLPConfig, OptimizerConfig, TabularConfig

GPT = Config(model=GPTConfig(depth=2, d_model=192, head_dim=32, kv_heads=2, vocab_size=50))
CONFIGS = [
    GPT,
    Config(model=EmbeddingConfig(d_model=8, vocab_size=50)),
    Config(model=LinearConfig(features=5, classes=3), data=TabularConfig()),
    Config(model=MLPConfig(hidden=7, features=5, classes=3), data=TabularConfig()),
]
CONSTANT = OptimizerConfig(warmdown_fraction=0.0, beta1=0.7, beta2=0.9, eps=1e-3)


def draw(shape, seed):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def numpy_adamw(p, grads, rates, beta1, beta2, eps, decay):
    """arXiv:1711.05101, algorithm 2, the decay multiplied by the rate."""
    m, v, path = np.zeros_like(p), np.zeros_like(p), []
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        corrected = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        p = p - rate * (corrected + decay * p)
        path.append(p)
    return path
