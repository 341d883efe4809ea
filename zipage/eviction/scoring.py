"""How much each resident entry of one layer is worth: steps 1 to 5 of the method (docs/architecture.md)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zipage.config import ScoringOptions
from zipage.eviction.random_order import random_order
from zipage.kernels.reference import (
    anchor_score,
    combine,
    global_score,
    pool_score,
    redundancy_full,
    redundancy_lightning,
    select_entries,
    window_attention_score,
)


@dataclass(frozen=True)
class RecordedQueries:
    """The observed queries of one layer.

    Attributes:
        queries: `[m, Hq, d]`.
        indices: `[m]` int64, the resident index of each query's own entry.
    """

    queries: Tensor
    indices: Tensor


@dataclass(frozen=True)
class AccumulatedAttention:
    """What decode attention has added up in one layer.

    Attributes:
        total: `[Hkv, n]` float32, over the observed queries, of the largest probability within a head group.
        num_queries: how many queries were observed.
    """

    total: Tensor
    num_queries: int


@dataclass(frozen=True)
class LayerScores:
    """Scores of one layer's entries, both `[Hkv, n]` float32.

    Attributes:
        cached: S of step 2, what survivors carry to the next compression.
        final: F of step 5, what selection ranks by.
    """

    cached: Tensor
    final: Tensor


def score_layer(
    keys: Tensor,
    observation: RecordedQueries | AccumulatedAttention,
    old_scores: Tensor,
    scoring: ScoringOptions,
    block_size: int,
) -> LayerScores:
    """Score the `n` resident entries of one layer.

    Args:
        keys: `[Hkv, n, d]`.
        observation: what the interval's queries attended to.
        old_scores: `[Hkv, num_survivors]` float32, cached by the last compression; none at the first one.
        scoring: which terms, with which constants.
        block_size: entries that lightning redundancy compares with each other.
    """
    cached = _attention_score(keys, observation, scoring.reduce)
    num_survivors = old_scores.shape[1]
    cached[:, :num_survivors] = global_score(cached[:, :num_survivors], old_scores, scoring.decay)
    if scoring.order == "random":
        return LayerScores(cached, random_order(keys))
    is_pooled = scoring.pooling == "always" or (scoring.pooling == "first" and num_survivors == 0)
    score = pool_score(cached) if is_pooled else cached
    if scoring.redundancy == "off":
        return LayerScores(cached, score)
    redundancy = _redundancy(keys, scoring, block_size)
    return LayerScores(cached, combine(score, redundancy, scoring.attention_weight))


def prefer_anchors(final: Tensor, keys: Tensor, rest: range, count: int) -> Tensor:
    """Give the best anchors of one layer the highest score there is.

    Args:
        final: `[Hkv, n]` float32.
        keys: `[Hkv, n, d]`.
        rest: the entries of which scores choose some.
        count: anchors of each head, at most `len(rest)`.

    Returns:
        `[Hkv, n]` float32.
    """
    if not count:
        return final
    tiers = torch.zeros(len(rest), dtype=torch.int64, device=keys.device)
    best = select_entries(anchor_score(keys, rest.start, rest.stop), count, tiers)
    return final.scatter(1, best + rest.start, torch.inf)


def _attention_score(keys: Tensor, observation: RecordedQueries | AccumulatedAttention, reduce: str) -> Tensor:
    if isinstance(observation, AccumulatedAttention):
        return observation.total / observation.num_queries
    scale = keys.shape[-1] ** -0.5
    return window_attention_score(observation.queries, observation.indices, keys, scale, reduce)


def _redundancy(keys: Tensor, scoring: ScoringOptions, block_size: int) -> Tensor:
    threshold, temperature = scoring.similarity_threshold, scoring.redundancy_temperature
    if scoring.redundancy == "full":
        return redundancy_full(keys, threshold, temperature)
    return redundancy_lightning(keys, block_size, threshold, temperature)
