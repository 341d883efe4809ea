"""Dense causal attention without a cache, for holding models against transformers."""

import math
from collections.abc import Callable, Sequence

import torch


def dense_causal_attention(
    lengths: Sequence[int],
) -> Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """An attention function for a decoder's flat batch.

    Args:
        lengths: tokens of each sequence, which lie one after the other in the batch and do not see each other.

    Returns:
        `attention(layer, query [T, Hq, d], key [T, Hkv, d], value [T, Hkv, d]) -> [T, Hq, d]`, computed in float32.
    """

    def attention(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        parts = zip(*(tensor.float().split(list(lengths)) for tensor in (query, key, value)), strict=True)
        return torch.cat([_one_sequence(*part) for part in parts]).to(query.dtype)

    return attention


def _one_sequence(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    length, num_query_heads, head_dim = query.shape
    group = num_query_heads // key.shape[1]
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    scores = torch.einsum("ihd,jhd->hij", query, key) / math.sqrt(head_dim)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    return torch.einsum("hij,jhd->ihd", weights, value)
