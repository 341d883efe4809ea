"""Compressions of several requests on the Triton kernels: every step of the method over many layers in one launch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionJob
from zipage.errors import EngineError
from zipage.eviction.job_tiers import JobTiers
from zipage.eviction.lengths import length_classes, row_length
from zipage.eviction.query_rows import observed_queries
from zipage.eviction.random_order import random_order_in_blocks
from zipage.eviction.scratch import layer_bytes, layers_at_once
from zipage.execution.pool import KVPool
from zipage.execution.upload import upload
from zipage.kernels.anchor_score import anchor_score, prefer
from zipage.kernels.compact import compact
from zipage.kernels.global_score import accumulated_score
from zipage.kernels.pool_score import pool_score
from zipage.kernels.redundancy import combine, full_similarity, lightning_similarity
from zipage.kernels.select_entries import select_entries
from zipage.kernels.window_score import window_score


@dataclass(frozen=True)
class _Batch:
    """Lists and numbers of `R` requests on the pool's device, as the kernels take them, int64; padded with zeros.

    All tensors begin at multiples of 16 bytes, because other addresses would make kernels be compiled again.

    Attributes:
        table, targets: `[R, most blocks]`.
        query_rows, query_indices: `[R, w]`, of `observed_queries`, indices among resident entries; `[R, 0]` where
            attention is accumulated. They have places for all `w`, lest kernels differ with the longest interval.
        num_entries, num_survivors, num_queries, num_pinned, query_buffer, keep, recent: `[R]`.
        first_rest, last_rest: `[R]`, the entries of which scores choose some.
        with_anchors: `[R]`, of the entries that survive, those of the higher tiers and anchors; 0 for no anchors.
        row_length: places of a row of scores.
        most_kept: the largest `keep`.
        in_place: whether a target may be a block of its request's table.
        has_first: whether a request is compressed for the first time.
    """

    table: Tensor
    targets: Tensor
    query_rows: Tensor
    query_indices: Tensor
    num_entries: Tensor
    num_survivors: Tensor
    num_queries: Tensor
    num_pinned: Tensor
    query_buffer: Tensor
    keep: Tensor
    recent: Tensor
    first_rest: Tensor
    last_rest: Tensor
    with_anchors: Tensor
    row_length: int
    most_kept: int
    in_place: bool
    has_first: bool


def compress_layers(
    jobs: Sequence[CompressionJob], pool: KVPool, scoring: ScoringOptions, scratch_bytes: int
) -> Iterator[Tensor]:
    """Compress requests, as many layers at a time as `scratch_bytes` allow, and yield what each launch has kept.

    The numbers of a request do not depend on the others where all are of one `length_class`.

    Args:
        jobs: have been checked; no two of them write the same block, and none reads what another one writes.
        pool: as in `run_job`.
        scoring: how survivors are chosen.
        scratch_bytes: limit of the memory beside the pool, where one layer of all requests fits.

    Yields:
        `[R, layers, Hkv, most kept]` int32 for the next layers, the first `keep` places of each request. Its launches
        have been made; the device may not have come to them.
    """
    batch = _upload(jobs, scoring, pool.device)
    most_entries = max(job.num_entries for job in jobs)
    bytes_of_layer = layer_bytes(most_entries, batch.most_kept, pool.geometry, scoring)
    stride = layers_at_once(bytes_of_layer, len(jobs), scratch_bytes)
    num_layers = pool.geometry.num_layers
    with_anchors = scoring.layers_with_anchors(num_layers)
    for has_anchors, first, last in ((True, 0, with_anchors), (False, with_anchors, num_layers)):
        for start in range(first, last, stride):
            yield _compress(batch, _layers(pool, start, min(start + stride, last)), scoring, has_anchors)


def compile_kernels(pool: KVPool, scoring: ScoringOptions, longest: int) -> None:
    """Compile what jobs of requests with up to `longest` entries run, without touching any: the job has no entry.

    Kernels differ by the class of a row's length and by whether they compact in place, by nothing else: tensors are
    aligned, and numbers of requests, layers, blocks and queries are no part of what is compiled.
    """
    # Block table, targets, entries, survivors, observed queries, pinned entries, query buffer, and what is kept.
    nothing = CompressionJob(0, [0], [0], 0, 0, 1, 0, 0, 0)
    batch, layer = _upload([nothing], scoring, pool.device), _layers(pool, 0, 1)
    has_anchors = scoring.layers_with_anchors(pool.geometry.num_layers) > 0
    for length in length_classes(longest):
        for in_place in (False, True):
            empty = replace(batch, row_length=length, most_kept=length, in_place=in_place)
            _compress(empty, layer, scoring, has_anchors)


def _upload(jobs: Sequence[CompressionJob], scoring: ScoringOptions, device: torch.device) -> _Batch:
    """One copy to the device carries everything."""
    recorded = [observed_queries(scoring.observe, scoring.window, job.num_entries - job.num_survivors) for job in jobs]
    tiers = [JobTiers.of(job, scoring) for job in jobs]
    num_rows = 0 if scoring.observe == "all" else scoring.window
    matrices = {
        "table": _padded([job.block_table for job in jobs]),
        "targets": _padded([job.target_blocks for job in jobs]),
        "query_rows": _padded([[row for _, row in pairs] for pairs in recorded], num_rows),
        "query_indices": _padded(
            [[job.num_survivors + index for index, _ in pairs] for job, pairs in zip(jobs, recorded, strict=True)],
            num_rows,
        ),
    }
    numbers = {
        "num_entries": [job.num_entries for job in jobs],
        "num_survivors": [job.num_survivors for job in jobs],
        "num_queries": [job.num_observed for job in jobs] if scoring.observe == "all" else [*map(len, recorded)],
        "num_pinned": [each.num_pinned for each in tiers],
        "query_buffer": [job.query_buffer for job in jobs],
        "keep": [job.keep for job in jobs],
        "recent": [each.recent for each in tiers],
        "first_rest": [each.rest.start for each in tiers],
        "last_rest": [each.rest.stop for each in tiers],
        "with_anchors": [each.num_higher + each.num_anchors if each.num_anchors else 0 for each in tiers],
    }
    flat = [[number for row in rows for number in row] for rows in matrices.values()] + list(numbers.values())
    # An even number of 8 bytes each, so that all begin at multiples of 16.
    parts = upload([part + [0] * (len(part) % 2) for part in flat], device)
    shapes = [(len(jobs), len(rows[0])) for rows in matrices.values()] + [(len(jobs),)] * len(numbers)
    tensors = [part[: len(numbers)].view(shape) for part, numbers, shape in zip(parts, flat, shapes, strict=True)]
    return _Batch(
        **dict(zip([*matrices, *numbers], tensors, strict=True)),
        row_length=row_length(max(job.num_entries for job in jobs)),
        most_kept=max(job.keep for job in jobs),
        in_place=any(job.is_in_place for job in jobs),
        has_first=any(job.num_survivors == 0 for job in jobs),
    )


def _layers(pool: KVPool, first: int, last: int) -> KVPool:
    """A view of the layers from `first` up to `last`."""
    return replace(
        pool,
        geometry=msgspec.structs.replace(pool.geometry, num_layers=len(pool.keys[first:last])),
        keys=pool.keys[first:last],
        values=pool.values[first:last],
        scores=pool.scores[first:last],
        observed=None if pool.observed is None else pool.observed[first:last],
        queries=pool.queries[first:last],
    )


def _compress(batch: _Batch, pool: KVPool, scoring: ScoringOptions, has_anchors: bool) -> Tensor:
    """Compress all layers of the pool, which keep anchors or not, and return what is kept.

    Returns:
        `[R, L, Hkv, most kept]` int32.
    """
    score = _score(batch, pool, scoring)
    final = _final_score(batch, pool, scoring, score)
    kept = torch.empty((*score.shape[:3], batch.most_kept), dtype=torch.int32, device=pool.device)
    tiers = scoring.sinks, batch.recent, batch.num_pinned
    if has_anchors:
        final = final.clone() if final is score else final
        anchor = _anchor_score(batch, pool)
        select_entries(anchor, batch.num_entries, batch.with_anchors, *tiers, kept)
        prefer(kept, batch.with_anchors, final)
    select_entries(final, batch.num_entries, batch.keep, *tiers, kept)
    blocks = batch.table, batch.targets
    compact(pool.keys, pool.values, pool.scores, pool.observed, score, *blocks, kept, batch.keep, batch.in_place)
    return kept


def _score(batch: _Batch, pool: KVPool, scoring: ScoringOptions) -> Tensor:
    """Steps 1 and 2: `[R, L, Hkv, row length]` float32, what survivors carry to the next compression."""
    num_layers, _, num_kv_heads, _, head_dim = pool.keys.shape
    shape = (len(batch.table), num_layers, num_kv_heads, batch.row_length)
    score = torch.empty(shape, dtype=torch.float32, device=pool.device)
    requests = (batch.table, batch.num_entries, batch.num_survivors)
    if scoring.observe == "all":
        if pool.observed is None:
            raise EngineError("scoring.observe is all, and the KV pool accumulates no attention")
        accumulated_score(pool.observed, pool.scores, *requests, batch.num_queries, scoring.decay, score)
        return score
    window_score(
        pool.queries,
        pool.keys,
        pool.scores,
        *requests,
        batch.query_buffer,
        batch.query_rows,
        batch.query_indices,
        batch.num_queries,
        head_dim**-0.5,
        scoring.decay,
        scoring.reduce,
        score,
    )
    return score


def _final_score(batch: _Batch, pool: KVPool, scoring: ScoringOptions, score: Tensor) -> Tensor:
    """Steps 3 to 5: `[R, L, Hkv, row length]` float32, what selection ranks by; `score` stays as it is."""
    if scoring.order == "random":
        return random_order_in_blocks(pool.keys, batch.table, batch.row_length)
    final = score
    if scoring.pooling == "always" or (scoring.pooling == "first" and batch.has_first):
        final = torch.empty_like(score)
        is_pooled = (batch.num_survivors == 0) | (scoring.pooling == "always")
        pool_score(score, batch.num_entries, is_pooled, final)
    if scoring.redundancy == "off":
        return final
    similarity = torch.empty_like(score)
    measure = full_similarity if scoring.redundancy == "full" else lightning_similarity
    measure(pool.keys, batch.table, batch.num_entries, scoring.similarity_threshold, similarity)
    temperature, weight = scoring.redundancy_temperature, scoring.attention_weight
    combine(final, similarity, batch.num_entries, temperature, weight, similarity)
    return similarity


def _anchor_score(batch: _Batch, pool: KVPool) -> Tensor:
    """`[R, L, Hkv, row length]` float32, where scores choose."""
    num_layers, _, num_kv_heads, _, _ = pool.keys.shape
    shape = (2, len(batch.table), num_layers, num_kv_heads, batch.row_length)
    similarity, anchor = torch.empty(shape, dtype=torch.float32, device=pool.device)
    ends = batch.num_entries, batch.first_rest, batch.last_rest
    anchor_score(pool.keys, batch.table, *ends, similarity, anchor)
    return anchor


def _padded(rows: list[list[int]], least: int = 1) -> list[list[int]]:
    """Rows of one length, at least `least`, filled up with zeros."""
    length = max(least, *map(len, rows))
    return [row + [0] * (length - len(row)) for row in rows]
