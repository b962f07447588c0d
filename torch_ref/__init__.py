"""The same training step in plain PyTorch. Imports no jax."""
