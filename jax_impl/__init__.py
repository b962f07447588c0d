"""The training step in JAX, Flax NNX and optax. Imports no torch."""
