"""The same training step in plain PyTorch. Imports no jax."""

from twinstep.extras import needs

needs("torch", "torch_ref")
