"""Known ways in which a JAX port diverges from its PyTorch original, each injected into a check that must find it.

`catalogue.py` lists them all; each file holds those of one part of the step, as small patches of jax_impl (or of the
bridge and the probes that parity puts around it). torch_ref is never touched.
"""
