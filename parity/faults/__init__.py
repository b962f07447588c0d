"""Known ways in which a JAX port parts from its PyTorch original, injected one by one into a check that must see them.

`catalogue.py` lists them all; each file holds those of one part of the step, as small patches of jax_impl (or of the
bridge and the probes that parity puts around it). torch_ref is never touched.
"""
