"""Anchors: entries whose keys have much content that no later entry has.

A line that states a fact once is looked up long after the last attention to it, so attention does not tell it from
the rest. Its content does: it is strong, and nothing after it says the same.
"""

import torch
from torch.nn.functional import normalize

LEAST_DEVIATION = 1e-6


def content(keys: torch.Tensor) -> torch.Tensor:
    """What keys [..., d] are about rather than where they stand: the dimensions that RoPE turns slowly, [..., d / 2].

    Dimension `i` is turned with `i + d / 2`; the slower half of these pairs counts.
    """
    quarter = keys.shape[-1] // 4
    return torch.cat((keys[..., quarter : 2 * quarter], keys[..., 3 * quarter :]), -1)


def anchor_scores(keys: torch.Tensor, valid: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """`z(|c|) + z(1 - largest cosine with the content of a later entry)`, of each entry's content `c`.

    Args:
        keys: [B, H, n, d], after RoPE, in the order of their positions.
        valid: [B, H, n] bool, the entries that there are.
        rest: [B, H, n] bool, those to choose from, which the mean and the deviation of `z` are of.

    Returns:
        [B, H, n], minus infinity outside of `rest`; the cosine is -1 where no entry is later.
    """
    contents = content(keys)
    directions = normalize(contents, dim=-1)
    later = torch.ones(keys.shape[2], keys.shape[2], dtype=torch.bool).triu(1) & valid[:, :, None]
    cosine = (directions @ directions.transpose(-1, -2)).masked_fill(~later, -1.0).amax(-1)
    scores = _standardise(contents.norm(dim=-1), rest) + _standardise(1 - cosine, rest)
    return scores.masked_fill(~rest, -torch.inf)


def _standardise(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    count = among.sum(-1, keepdim=True).clamp(min=1)
    mean = (values * among).sum(-1, keepdim=True) / count
    variance = ((values - mean).square() * among).sum(-1, keepdim=True) / count
    return (values - mean) / variance.sqrt().clamp(min=LEAST_DEVIATION)
