"""The parity engine: is the JAX port the PyTorch original, and if not, where does it part from it?"""
