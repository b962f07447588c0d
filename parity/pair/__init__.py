"""Any torch module beside any JAX port of it: `parity.compare` and what it is made of."""
