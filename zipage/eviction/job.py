"""One compression job from start to end: in every layer score the entries, select, move the survivors together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionJob
from zipage.errors import EngineError
from zipage.eviction.job_tiers import JobTiers
from zipage.eviction.query_rows import observed_queries
from zipage.eviction.scoring import AccumulatedAttention, RecordedQueries, prefer_anchors, score_layer
from zipage.eviction.scratch import SCRATCH_BYTES
from zipage.execution.pool import KVPool
from zipage.kernels.reference import compact, gather_entries, place_entries, select_entries


@dataclass(frozen=True)
class JobResult:
    """What a job kept.

    Attributes:
        kept: `[L, Hkv, keep]` int64, ascending indices of the survivors among the entries that were resident.
        num_pinned: leading survivors that are the prompt's, where the prompt is pinned.
    """

    kept: Tensor
    num_pinned: int


@dataclass(frozen=True)
class _Plan:
    """The parts of a job that are the same in every layer, as tensors on the pool's device.

    `rest` are the entries of which scores choose; the first `layers_with_anchors` layers keep `num_anchors` anchors
    among them. `query_rows` and `query_indices` are those of `observed_queries`, indices among resident entries.
    """

    job: CompressionJob
    scoring: ScoringOptions
    table: Tensor
    targets: Tensor
    tiers: Tensor
    rest: range
    num_anchors: int
    layers_with_anchors: int
    query_rows: Tensor
    query_indices: Tensor


def run_job(job: CompressionJob, pool: KVPool, scoring: ScoringOptions) -> JobResult:
    """Compress one request: keep the best `job.keep` entries of every layer and KV head in `job.target_blocks`.

    Writes keys, values and scores of the survivors there, and zero to the targets' accumulated attention. On a GPU
    this has been launched, not done, when the function returns.

    Args:
        job: the request's blocks and counts.
        pool: read at `job.block_table` and `job.query_buffer`, written at `job.target_blocks`.
        scoring: how survivors are chosen.

    Raises:
        EngineError: the job contradicts itself or the scoring options.
    """
    check_job(job, pool.geometry.block_size, scoring)
    layers = [kept[0] for kept in compress_layers([job], pool, scoring, SCRATCH_BYTES)]
    return JobResult(torch.cat(layers).long(), JobTiers.of(job, scoring).pinned_survivors())


def compress_layers(
    jobs: Sequence[CompressionJob], pool: KVPool, scoring: ScoringOptions, scratch_bytes: int
) -> Iterator[Tensor]:
    """Do jobs that have been checked, on a CPU one alone, and yield what the next layers of each keep.

    `zipage.eviction.kernel_job.compress_layers` says more. What has been yielded has been written, or will be before
    what is launched later on the same stream.
    """
    if pool.device.type == "cuda":
        # Triton takes long to import, and a CPU engine does without.
        from zipage.eviction import kernel_job

        yield from kernel_job.compress_layers(jobs, pool, scoring, scratch_bytes)
        return
    (job,) = jobs
    plan = _plan(job, pool, scoring)
    for layer in range(pool.geometry.num_layers):
        yield _compress_layer(plan, pool, layer)[None, None]


def check_job(job: CompressionJob, block_size: int, scoring: ScoringOptions) -> None:
    """Raise an EngineError where the job contradicts itself or the scoring options."""
    if job.keep > min(len(job.target_blocks) * block_size, job.num_entries):
        raise EngineError(
            f"compression of request {job.uid} cannot keep {job.keep} of {job.num_entries} entries in "
            f"{len(job.target_blocks)} target blocks of {block_size}"
        )
    if job.num_entries > len(job.block_table) * block_size:
        raise EngineError(
            f"compression of request {job.uid} names {job.num_entries} entries in {len(job.block_table)} blocks of "
            f"{block_size}"
        )
    recent = scoring.recent_entries(job.keep, job.num_pinned)
    if scoring.sinks + recent > job.keep:
        raise EngineError(
            f"compression of request {job.uid} keeps {job.keep} entries, fewer than the {scoring.sinks} of "
            f"scoring.sinks and the {recent} of scoring.recent together"
        )
    num_observed = job.num_observed if scoring.observe == "all" else job.num_entries - job.num_survivors
    if num_observed < 1:
        raise EngineError(f"compression of request {job.uid} has no observed queries")


def _plan(job: CompressionJob, pool: KVPool, scoring: ScoringOptions) -> _Plan:
    device = pool.keys.device
    recorded = observed_queries(scoring.observe, scoring.window, job.num_entries - job.num_survivors)
    tiers = JobTiers.of(job, scoring)
    return _Plan(
        job=job,
        scoring=scoring,
        table=torch.tensor(job.block_table, device=device),
        targets=torch.tensor(job.target_blocks, device=device),
        tiers=tiers.of_entries(device),
        rest=tiers.rest,
        num_anchors=tiers.num_anchors,
        layers_with_anchors=scoring.layers_with_anchors(pool.geometry.num_layers),
        query_rows=torch.tensor([row for _, row in recorded], dtype=torch.int64, device=device),
        query_indices=torch.tensor(
            [job.num_survivors + index for index, _ in recorded], dtype=torch.int64, device=device
        ),
    )


def _compress_layer(plan: _Plan, pool: KVPool, layer: int) -> Tensor:
    """Compress one layer and return its kept indices, `[Hkv, keep]`."""
    job, table, targets = plan.job, plan.table, plan.targets
    keys = gather_entries(pool.keys[layer], table, job.num_entries)
    old_scores = gather_entries(pool.scores[layer], table, job.num_survivors)
    observation = _observation(plan, pool, layer)
    scores = score_layer(keys, observation, old_scores, plan.scoring, pool.geometry.block_size)
    num_anchors = plan.num_anchors if layer < plan.layers_with_anchors else 0
    final = prefer_anchors(scores.final, keys, plan.rest, num_anchors)
    kept = select_entries(final, job.keep, plan.tiers)
    compact(pool.keys[layer], table, targets, kept)
    compact(pool.values[layer], table, targets, kept)
    place_entries(pool.scores[layer], targets, scores.cached.gather(1, kept))
    if pool.observed is not None:
        pool.observed[layer, targets] = 0.0
    return kept


def _observation(plan: _Plan, pool: KVPool, layer: int) -> RecordedQueries | AccumulatedAttention:
    job = plan.job
    if plan.scoring.observe != "all":
        return RecordedQueries(pool.queries[layer, job.query_buffer, plan.query_rows], plan.query_indices)
    if pool.observed is None:
        raise EngineError("scoring.observe is all, and the KV pool accumulates no attention")
    return AccumulatedAttention(gather_entries(pool.observed[layer], plan.table, job.num_entries), job.num_observed)
