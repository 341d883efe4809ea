"""Compression jobs on random pools against the dense oracle."""

from dataclasses import dataclass

import msgspec
import pytest
import torch
from dense_oracle import attention_score, choose_survivors, observed_indices

from zipage.config import PAPER_SCORING, ScoringOptions
from zipage.engine_messages import CompressionJob, PoolGeometry
from zipage.errors import EngineError
from zipage.eviction.job import JobResult, run_job
from zipage.eviction.query_rows import observed_queries
from zipage.execution.pool import KVPool

NUM_LAYERS, NUM_KV_HEADS, GROUP, HEAD_DIM, NUM_BLOCKS = 2, 2, 2, 8, 16
QUERY_BUFFER = 2

UNPINNED = {"pin_share": 0.0}
OPTIONS = {
    "default": {},
    "mean": UNPINNED | {"reduce": "mean", "recent_share": 0.0, "anchor_share": 0.0},
    "no-anchors": UNPINNED | {"recent_share": 0.0, "anchor_share": 0.0},
    "anchors-only": UNPINNED | {"recent_share": 0.0, "anchor_share": 1.0, "anchor_layers": 1.0},
    "anchors-in-the-first-layer": UNPINNED | {"recent_share": 0.0, "anchor_layers": 0.5},
    "anchors-nowhere": UNPINNED | {"anchor_layers": 0.0},
    "no-recent-share": UNPINNED | {"recent_share": 0.0},
    "spread": UNPINNED | {"observe": "spread", "recent_share": 0.1},
    "all": UNPINNED | {"observe": "all", "recent_share": 0.1},
    "no-decay": UNPINNED | {"decay": 0.0, "recent_share": 0.0},
    "pool-first": UNPINNED | {"pooling": "first", "recent_share": 0.0},
    "pool-always": UNPINNED | {"pooling": "always", "recent_share": 0.0},
    "redundancy-full": UNPINNED | {"redundancy": "full", "recent_share": 0.0},
    "redundancy-lightning": UNPINNED | {"redundancy": "lightning", "recent_share": 0.0, "similarity_threshold": 0.1},
    "redundancy-constants": UNPINNED
    | {
        "redundancy": "full",
        "recent_share": 0.0,
        "attention_weight": 0.7,
        "redundancy_temperature": 0.05,
        "similarity_threshold": -0.3,
    },
    "pinned": {"recent_share": 0.2},
    "nothing-protected": UNPINNED | {"sinks": 0, "recent": 0, "recent_share": 0.0},
}


@dataclass
class Case:
    """A pool with one request's entries in it, the job that compresses it, and copies of what it may change."""

    pool: KVPool
    job: CompressionJob
    scoring: ScoringOptions
    queries: torch.Tensor
    before: KVPool


def random_pool(block_size: int, scoring: ScoringOptions, dtype: torch.dtype) -> KVPool:
    accumulate = scoring.observe == "all"
    geometry = PoolGeometry(
        num_layers=NUM_LAYERS,
        num_blocks=NUM_BLOCKS,
        block_size=block_size,
        num_query_heads=NUM_KV_HEADS * GROUP,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=str(dtype).removeprefix("torch."),
        num_query_slots=3,
        num_query_buffers=3,
        window=0 if accumulate else scoring.window,
        accumulate=accumulate,
    )
    entries = (NUM_LAYERS, NUM_BLOCKS, NUM_KV_HEADS, block_size)
    return KVPool(
        geometry=geometry,
        keys=torch.randn(*entries, HEAD_DIM).to(dtype),
        values=torch.randn(*entries, HEAD_DIM).to(dtype),
        scores=torch.rand(entries) * 0.1,
        observed=torch.rand(entries) if accumulate else None,
        queries=torch.randn(NUM_LAYERS, 3, geometry.window, NUM_KV_HEADS * GROUP, HEAD_DIM).to(dtype),
    )


def make_case(
    scoring: ScoringOptions,
    block_size: int = 8,
    num_survivors: int = 0,
    num_pinned: int = 0,
    in_place: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Seven full blocks, of which six remain; recorded queries or accumulated attention are put where they belong."""
    torch.manual_seed(block_size + num_survivors)
    pool = random_pool(block_size, scoring, dtype)
    blocks = torch.randperm(NUM_BLOCKS).tolist()
    table, fresh = blocks[:7], blocks[7:]
    interval = 7 * block_size - num_survivors
    queries = torch.randn(NUM_LAYERS, interval, NUM_KV_HEADS * GROUP, HEAD_DIM).to(dtype)
    for index, row in observed_queries(scoring.observe, scoring.window, interval):
        pool.queries[:, QUERY_BUFFER, row] = queries[:, index]
    observed = observed_indices(scoring, interval, num_survivors, num_pinned)
    job = CompressionJob(
        uid=5,
        block_table=table,
        target_blocks=table[:6] if in_place else fresh[:6],
        num_entries=7 * block_size,
        num_survivors=num_survivors,
        num_observed=len(observed) if scoring.observe == "all" else 0,
        num_pinned=num_pinned,
        query_buffer=QUERY_BUFFER,
        keep=6 * block_size,
    )
    if pool.observed is not None:
        accumulate(pool, job, queries[:, observed].float(), [num_survivors + index for index in observed])
    before = KVPool(pool.geometry, pool.keys.clone(), pool.values.clone(), pool.scores.clone(), None, pool.queries)
    return Case(pool, job, scoring, queries, before)


def accumulate(pool: KVPool, job: CompressionJob, queries: torch.Tensor, indices: list[int]) -> None:
    assert pool.observed is not None
    for layer in range(NUM_LAYERS):
        keys = dense(pool.keys[layer], job.block_table).float()
        for head in range(NUM_KV_HEADS):
            group = queries[layer, :, head * GROUP : (head + 1) * GROUP]
            total = attention_score(group, indices, keys[head], ScoringOptions(observe="all")) * len(indices)
            pool.observed[layer, job.block_table, head] = total.view(len(job.block_table), -1)


def dense(cache: torch.Tensor, table: list[int]) -> torch.Tensor:
    """`[Hkv, n, ...]` of all entries in the table's blocks."""
    return torch.cat([cache[block] for block in table], dim=1)


def survivors_by_oracle(case: Case, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    job, scoring = case.job, case.scoring
    observed = observed_indices(scoring, case.queries.shape[1], job.num_survivors, job.num_pinned)
    return choose_survivors(
        dense(case.before.keys[layer], job.block_table).float(),
        case.queries[layer, observed].float(),
        [job.num_survivors + index for index in observed],
        dense(case.before.scores[layer], job.block_table)[:, : job.num_survivors],
        scoring,
        case.pool.geometry.block_size,
        job.keep,
        [min(job.num_pinned, int(scoring.pin_share * job.keep))] * NUM_KV_HEADS,
        layer < round(scoring.anchor_layers * NUM_LAYERS),
    )


def check_against_oracle(case: Case, result: JobResult) -> None:
    job, pool = case.job, case.pool
    for layer in range(NUM_LAYERS):
        kept, scores = survivors_by_oracle(case, layer)
        assert torch.equal(result.kept[layer], kept)
        torch.testing.assert_close(dense(pool.scores[layer], job.target_blocks), scores)
        for cache, before in ((pool.keys, case.before.keys), (pool.values, case.before.values)):
            entries = dense(before[layer], job.block_table)
            expected = torch.stack([entries[head, kept[head]] for head in range(NUM_KV_HEADS)])
            assert torch.equal(dense(cache[layer], job.target_blocks), expected)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("num_survivors", [0, 48])
@pytest.mark.parametrize("in_place", [True, False])
def test_job_equals_oracle(name, num_survivors, in_place):
    case = make_case(ScoringOptions(**OPTIONS[name]), 8, num_survivors, num_pinned=13, in_place=in_place)
    check_against_oracle(case, run_job(case.job, case.pool, case.scoring))


@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("scoring", [ScoringOptions(), PAPER_SCORING], ids=["default", "paper"])
def test_job_equals_oracle_for_any_block_size(block_size, scoring):
    case = make_case(scoring, block_size)
    check_against_oracle(case, run_job(case.job, case.pool, case.scoring))


def test_job_scores_low_precision_caches_in_float32():
    case = make_case(PAPER_SCORING, dtype=torch.bfloat16)
    check_against_oracle(case, run_job(case.job, case.pool, case.scoring))


def test_job_leaves_other_blocks_alone():
    case = make_case(ScoringOptions(observe="all"), in_place=False)
    observed = case.pool.observed.clone()
    run_job(case.job, case.pool, case.scoring)
    others = [block for block in range(NUM_BLOCKS) if block not in case.job.target_blocks]
    for after, before in (
        (case.pool.keys, case.before.keys),
        (case.pool.values, case.before.values),
        (case.pool.scores, case.before.scores),
        (case.pool.observed, observed),
    ):
        assert torch.equal(after[:, others], before[:, others])


def test_job_starts_the_targets_accumulated_attention_afresh():
    case = make_case(ScoringOptions(observe="all"))
    assert case.pool.observed[:, case.job.target_blocks].count_nonzero() > 0
    run_job(case.job, case.pool, case.scoring)
    assert case.pool.observed[:, case.job.target_blocks].count_nonzero() == 0


@pytest.mark.parametrize(
    ("pin_share", "num_pinned", "expected"), [(1.0, 13, 13), (1.0, 56, 44), (0.5, 13, 13), (0.5, 30, 24), (0.0, 13, 0)]
)
def test_job_counts_the_pinned_survivors(pin_share, num_pinned, expected):
    case = make_case(ScoringOptions(pin_share=pin_share, recent_share=0.0, window=4), num_pinned=num_pinned)
    result = run_job(case.job, case.pool, case.scoring)
    assert result.num_pinned == expected
    # Where they do not fit beside the recent entries, scores choose among them.
    pinned = min(num_pinned, int(pin_share * case.job.keep))
    assert torch.equal((result.kept < pinned).sum(2), torch.full((NUM_LAYERS, NUM_KV_HEADS), expected))


@pytest.mark.parametrize(
    ("scoring", "changes", "message"),
    [
        (ScoringOptions(), {"target_blocks": [0, 1, 2]}, "3 target blocks"),
        (ScoringOptions(), {"num_entries": 47}, "48 of 47 entries"),
        (ScoringOptions(), {"num_entries": 57}, "57 entries in 7 blocks"),
        (ScoringOptions(recent=45), {}, "scoring.recent"),
        (ScoringOptions(observe="all"), {"num_observed": 0}, "no observed queries"),
        (ScoringOptions(), {"num_survivors": 56}, "no observed queries"),
    ],
)
def test_job_that_contradicts_itself_is_refused(scoring, changes, message):
    case = make_case(scoring)
    job = msgspec.structs.replace(case.job, **changes)
    with pytest.raises(EngineError, match=message):
        run_job(job, case.pool, scoring)
    assert torch.equal(case.pool.keys, case.before.keys)


def test_accumulated_attention_needs_a_pool_that_has_it():
    case = make_case(ScoringOptions())
    job = msgspec.structs.replace(case.job, num_observed=1)
    with pytest.raises(EngineError, match="accumulates no attention"):
        run_job(job, case.pool, ScoringOptions(observe="all"))
