"""A bug to plant into a port."""

from typing import Any, NamedTuple


class Bug(NamedTuple):
    """One replacement of a function or a constant of the port's module, and the lines that it makes wrong.

    A line is written "file.py:function: how its statement begins", with [n] behind the function for the n-th of
    statements that begin alike; truth.py finds it. Of several any is right, the closest stands first.
    """

    what: str
    name: str  # what is replaced in the module
    wrong: Any
    where: str  # torch's module at which it first shows, as a regular expression; "output" for none before it
    torch: tuple[str, ...]  # what computes the same on torch's side
    jax: tuple[str, ...] = ()  # lines of the port that are as right an answer as those that the replacement changes
    inside: tuple[str, ...] = ()  # of a helper, right by itself, where the first wrong value is computed for the caller
    stage: str = "activations"  # the first that shows it; "weights" for what lies in `convert`, before the pass


PADDING_MASK = (
    "masking_utils.py:padding_mask_function: return padding_mask[batch_idx, kv_idx]",
    "masking_utils.py:eager_mask: mask = torch.where(mask,",
)
CAUSAL_MASK = (
    "masking_utils.py:causal_mask_function: return kv_idx <= q_idx",
    "masking_utils.py:eager_mask: mask = torch.where(mask,",
)
SDPA = "integrations/sdpa_attention.py:sdpa_attention_forward: attn_output = torch.nn.functional.scaled_dot_product_"
GELU = "activations.py:GELUActivation.forward: return self.act(input)"
SILU = "activations.py:SiLUActivation.forward: return nn.functional.silu(input)"
