"""The next token from logits: temperature, top-k, top-p (nucleus), and one uniform random number for each token.

Shapes: B sequences, V vocabulary.
"""

import torch

GREEDY_BELOW = 1e-6  # a smaller temperature is taken as 0: dividing by it may overflow


def filter_logits(logits_BV: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
    """-inf for all but the `top_k` largest logits, and of these all but the nucleus of probability `top_p`.

    The nucleus is the smallest set of likeliest tokens with at least that probability (arXiv:1904.09751). Tokens as
    likely as the last one kept are kept too.
    """
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = torch.topk(logits_BV, top_k)[0][:, -1:]
        logits_BV = torch.where(logits_BV < least_B1, -torch.inf, logits_BV)
    if top_p < 1:
        sorted_BV, _ = torch.sort(logits_BV, dim=-1, descending=True)
        probability_BV = torch.softmax(sorted_BV, dim=-1)
        likelier_BV = torch.cumsum(probability_BV, dim=-1) - probability_BV
        least_B1 = torch.amin(torch.where(likelier_BV < top_p, sorted_BV, torch.inf), dim=-1, keepdim=True)
        logits_BV = torch.where(logits_BV < least_B1, -torch.inf, logits_BV)
    return logits_BV


def sample(
    logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float, top_k: int | None, top_p: float
) -> torch.Tensor:
    """logits (B, V), numbers in [0, 1) (B,) -> tokens (B,) int64, by inverting the cumulative distribution.

    Temperature comes before the filters. At temperature 0 the likeliest token, the first of equals.
    """
    if temperature < GREEDY_BELOW:
        return torch.argmax(logits_BV, dim=-1)
    probability_BV = torch.softmax(filter_logits(logits_BV / temperature, top_k, top_p), dim=-1)
    # A parallel cumsum can grow, by rounding, where it adds zero: only tokens that have a probability are chosen.
    cumulative_BV = torch.where(probability_BV > 0, torch.cumsum(probability_BV, dim=-1), 0)
    total_B1 = torch.amax(cumulative_BV, dim=-1, keepdim=True)
    point_B1 = torch.minimum(uniform_B[:, None] * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.argmax((cumulative_BV > point_B1).to(torch.uint8), dim=-1)
