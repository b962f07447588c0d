"""The next token from logits: temperature, the most likely few, the nucleus, and a number that decides.

Shapes: B sequences, V vocabulary.
"""

import torch

GREEDY_BELOW = 1e-6  # a smaller temperature is taken as 0: dividing by it may overflow


def filter_logits(logits_BV: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
    """-inf for all but the `top_k` largest logits, and of these all but the nucleus of probability `top_p`.

    The nucleus is the smallest set of likeliest tokens with at least that probability (arXiv:1904.09751). Tokens as
    likely as the last one that stays, stay too.
    """
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    if top_p < 1:
        sorted_BV = logits_BV.sort(dim=-1, descending=True).values
        probability_BV = sorted_BV.softmax(dim=-1)
        likelier_BV = probability_BV.cumsum(dim=-1) - probability_BV
        least_B1 = sorted_BV.masked_fill(likelier_BV >= top_p, torch.inf).amin(dim=-1, keepdim=True)
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    return logits_BV


def sample(
    logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float, top_k: int | None, top_p: float
) -> torch.Tensor:
    """logits (B, V), numbers in [0, 1) (B,) -> tokens (B,) int64, by inverting the cumulative distribution.

    Temperature comes before the filters. At temperature 0 the likeliest token, the first of equals.
    """
    if temperature < GREEDY_BELOW:
        return logits_BV.argmax(dim=-1)
    probability_BV = filter_logits(logits_BV / temperature, top_k, top_p).softmax(dim=-1)
    # A sum in another order can grow where nothing is added: only tokens that have a probability are chosen.
    cumulative_BV = probability_BV.cumsum(dim=-1).masked_fill(probability_BV == 0, 0)
    total_B1 = cumulative_BV.amax(dim=-1, keepdim=True)
    point_B1 = torch.minimum(uniform_B[:, None] * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return (cumulative_BV > point_B1).to(torch.uint8).argmax(dim=-1)
