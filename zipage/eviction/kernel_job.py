"""One compression job on the Triton kernels: every step of the method over all layers at once, in a few launches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zipage.config import ScoringOptions
from zipage.errors import EngineError
from zipage.eviction.query_rows import observed_queries
from zipage.execution.pool import KVPool
from zipage.kernels.compact import compact
from zipage.kernels.global_score import accumulated_score
from zipage.kernels.pool_score import pool_score
from zipage.kernels.redundancy import combine, full_similarity, lightning_similarity
from zipage.kernels.select_entries import select_entries
from zipage.kernels.window_score import window_score
from zipage.messages import CompressionJob


@dataclass(frozen=True)
class _DeviceJob:
    """A job's lists and numbers on the pool's device, as the kernels take them: one request, int64.

    Attributes:
        table, targets: `[1, blocks]`.
        query_rows, query_indices: `[1, m]`, of `observed_queries`, indices among resident entries.
        num_entries, num_survivors, num_queries, num_pinned, query_buffer, keep, recent: `[1]`.
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


def compress_layers(job: CompressionJob, pool: KVPool, scoring: ScoringOptions) -> Tensor:
    """Compress all layers and return the kept indices, `[L, Hkv, keep]` int64, as the reference path does.

    Args:
        job: has been checked.
        pool: as in `run_job`.
        scoring: how survivors are chosen.
    """
    in_place = not set(job.target_blocks).isdisjoint(job.block_table)
    is_first = job.num_survivors == 0
    return _compress(_upload(job, scoring, pool.device), job.num_entries, job.keep, in_place, is_first, pool, scoring)


def compile_kernels(pool: KVPool, scoring: ScoringOptions, num_entries: int) -> None:
    """Compile what jobs of requests with `num_entries` entries run, without touching any: the job has no entry."""
    block_size = pool.geometry.block_size
    num_queries = len(observed_queries(scoring.observe, scoring.window, num_entries))

    def numbers(*shape: int, value: int = 0) -> Tensor:
        return torch.full(shape, value, dtype=torch.int64, device=pool.device)

    nothing = _DeviceJob(
        table=numbers(1, num_entries // block_size),
        targets=numbers(1, num_entries // block_size - 1),
        query_rows=numbers(1, num_queries),
        query_indices=numbers(1, num_queries),
        num_entries=numbers(1),
        num_survivors=numbers(1),
        num_queries=numbers(1, value=1),
        num_pinned=numbers(1),
        query_buffer=numbers(1),
        keep=numbers(1),
        recent=numbers(1),
    )
    for in_place in (False, True):
        for is_first in (False, True):
            _compress(nothing, num_entries, num_entries - block_size, in_place, is_first, pool, scoring)


def _compress(
    on_device: _DeviceJob,
    num_entries: int,
    keep: int,
    in_place: bool,
    is_first: bool,
    pool: KVPool,
    scoring: ScoringOptions,
) -> Tensor:
    """`compress_layers`; the numbers beside `on_device` are what memory and launches need of it on the host."""
    score = _score(on_device, num_entries, pool, scoring)
    final = _final_score(on_device, is_first, pool, scoring, score)
    kept = torch.empty((*score.shape[:3], keep), dtype=torch.int32, device=pool.device)
    select_entries(
        final, on_device.num_entries, on_device.keep, scoring.sinks, on_device.recent, on_device.num_pinned, kept
    )
    blocks = on_device.table, on_device.targets
    compact(pool.keys, pool.values, pool.scores, pool.observed, score, *blocks, kept, on_device.keep, in_place)
    return kept[0].long()


def _upload(job: CompressionJob, scoring: ScoringOptions, device: torch.device) -> _DeviceJob:
    """One copy to the device carries everything, because each copy waits for its own round trip."""
    recorded = observed_queries(scoring.observe, scoring.window, job.num_entries - job.num_survivors)
    fields = {
        "table": job.block_table,
        "targets": job.target_blocks,
        "query_rows": [row for _, row in recorded],
        "query_indices": [job.num_survivors + index for index, _ in recorded],
        "num_entries": [job.num_entries],
        "num_survivors": [job.num_survivors],
        "num_queries": [job.num_observed if scoring.observe == "all" else len(recorded)],
        "num_pinned": [job.num_pinned if scoring.pin_prompt else 0],
        "query_buffer": [job.query_buffer],
        "keep": [job.keep],
        "recent": [scoring.recent_entries(job.keep)],
    }
    packed = torch.tensor([number for numbers in fields.values() for number in numbers]).to(device)
    parts = dict(zip(fields, packed.split([len(numbers) for numbers in fields.values()]), strict=True))
    matrices = {name: parts[name][None] for name in ("table", "targets", "query_rows", "query_indices")}
    return _DeviceJob(**{**parts, **matrices})


def _score(on_device: _DeviceJob, num_entries: int, pool: KVPool, scoring: ScoringOptions) -> Tensor:
    """Steps 1 and 2: `[1, L, Hkv, n]` float32, what survivors carry to the next compression."""
    num_layers, _, num_kv_heads, _, head_dim = pool.keys.shape
    score = torch.empty((1, num_layers, num_kv_heads, num_entries), dtype=torch.float32, device=pool.device)
    request = (on_device.table, on_device.num_entries, on_device.num_survivors)
    if scoring.observe == "all":
        if pool.observed is None:
            raise EngineError("scoring.observe is all, and the KV pool accumulates no attention")
        accumulated_score(pool.observed, pool.scores, *request, on_device.num_queries, scoring.decay, score)
        return score
    window_score(
        pool.queries,
        pool.keys,
        pool.scores,
        *request,
        on_device.query_buffer,
        on_device.query_rows,
        on_device.query_indices,
        on_device.num_queries,
        head_dim**-0.5,
        scoring.decay,
        score,
    )
    return score


def _final_score(on_device: _DeviceJob, is_first: bool, pool: KVPool, scoring: ScoringOptions, score: Tensor) -> Tensor:
    """Steps 3 to 5: `[1, L, Hkv, n]` float32, what selection ranks by; `score` stays as it is."""
    final = score
    if scoring.pooling == "always" or (scoring.pooling == "first" and is_first):
        final = torch.empty_like(score)
        is_pooled = torch.ones(1, dtype=torch.bool, device=pool.device)
        pool_score(score, on_device.num_entries, is_pooled, final)
    if scoring.redundancy == "off":
        return final
    similarity = torch.empty_like(score)
    measure = full_similarity if scoring.redundancy == "full" else lightning_similarity
    measure(pool.keys, on_device.table, on_device.num_entries, scoring.similarity_threshold, similarity)
    temperature, weight = scoring.redundancy_temperature, scoring.attention_weight
    combine(final, similarity, on_device.num_entries, temperature, weight, similarity)
    return similarity
