"""Modules of Flax, Equinox, Haiku and Keras as functions that tag each submodule's output with its path.

One file a library, loaded when it is used: each but Flax is optional.
"""
