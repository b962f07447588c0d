"""Causal attention with grouped key/value heads.

Shapes: B batch, T query time, S key time, H query heads, K key/value heads, C head channels.
"""

import torch
import torch.nn.functional as F


def causal_attention(q_BTHC: torch.Tensor, k_BSKC: torch.Tensor, v_BSKC: torch.Tensor, start: int = 0) -> torch.Tensor:
    """softmax(q k^T / sqrt(C)) v, where query t sees the keys 0 ... start + t; returns (B, T, H, C).

    Scores and softmax are float32 or wider (arXiv:1706.03762, equation 1; grouping: arXiv:2305.13245).
    """
    T, S = q_BTHC.shape[1], k_BSKC.shape[1]
    q_BHTC, k_BKSC, v_BKSC = (x.transpose(1, 2) for x in (q_BTHC, k_BSKC, v_BSKC))
    gqa = q_BHTC.shape[1] != k_BKSC.shape[1]
    if start == 0 and T == S:
        y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, is_causal=True, enable_gqa=gqa)
    else:  # is_causal aligns its triangle to the first key: after a cache the mask has to be given
        at_T = start + torch.arange(T, device=q_BTHC.device)
        sees_TS = torch.arange(S, device=q_BTHC.device)[None, :] <= at_T[:, None]
        y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask=sees_TS, enable_gqa=gqa)
    return y_BHTC.transpose(1, 2)
