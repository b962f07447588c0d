"""What tests read of JAX beyond its documented interface."""

import jax
from jax.extend.core import jaxprs_in_params


def inner_equations(jaxpr):
    """The equations of a jaxpr and of all functions within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from inner_equations(inner)


def times_compiled(jitted: jax.stages.Wrapped) -> int:
    """How many programs a jitted function holds."""
    return jitted._cache_size()
