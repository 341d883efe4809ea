"""Batches of compressions on the kernels: what a request keeps depends on itself alone, and memory is bounded."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from test_job import OPTIONS
from test_kernel_job import TENSORS, kept_by_kernels, on_device
from torch.utils._python_dispatch import TorchDispatchMode

from zipage.config import PAPER_SCORING, ScoringOptions
from zipage.engine_messages import CompressionJob, PoolGeometry
from zipage.eviction.job import check_job, run_job
from zipage.eviction.kernel_job import compress_layers
from zipage.eviction.scratch import SCRATCH_BYTES, layer_bytes
from zipage.execution.pool import KVPool, allocate_on_device

BLOCK_SIZE, NUM_LAYERS = 8, 2
FULL = ScoringOptions(pooling="always", redundancy="full", recent_share=0.0, pin_share=0.0)


@dataclass(frozen=True)
class Shape:
    """Of a request: blocks in its table, of which the last may not be full, blocks kept, survivors, pinned entries.

    The first `shared` blocks of its table are those of the request before, which does not write them either.
    """

    num_blocks: int
    kept_blocks: int
    num_survivors: int = 0
    num_pinned: int = 0
    missing: int = 0
    in_place: bool = True
    shared: int = 0


SHAPES = [
    Shape(6, 5, num_survivors=40, num_pinned=13),
    Shape(7, 3, in_place=False),
    Shape(5, 4, shared=2, num_pinned=30, missing=3),
]


def random_pool(scoring: ScoringOptions) -> KVPool:
    accumulate = scoring.observe == "all"
    geometry = PoolGeometry(
        num_layers=NUM_LAYERS,
        num_blocks=64,
        block_size=BLOCK_SIZE,
        num_query_heads=4,
        num_kv_heads=2,
        head_dim=16,
        dtype="float32",
        num_query_slots=len(SHAPES),
        num_query_buffers=2 * len(SHAPES),
        window=0 if accumulate else scoring.window,
        accumulate=accumulate,
    )
    pool = allocate_on_device(geometry, torch.device("cpu"))
    torch.manual_seed(5)
    for tensor in (pool.keys, pool.values, pool.queries):
        tensor.normal_()
    pool.scores.uniform_(0, 0.1)
    if pool.observed is not None:
        pool.observed.uniform_(0, 5)
    return pool


def make_jobs(scoring: ScoringOptions) -> list[CompressionJob]:
    """A job for each of `SHAPES`; blocks that are shared are not written."""
    free = torch.randperm(64, generator=torch.Generator().manual_seed(6)).tolist()
    jobs: list[CompressionJob] = []
    for uid, shape in enumerate(SHAPES):
        own = [free.pop() for _ in range(shape.num_blocks - shape.shared)]
        table = [*(jobs[-1].block_table[: shape.shared] if shape.shared else []), *own]
        in_place = own[: shape.kept_blocks - shape.shared] if shape.in_place else []
        fresh = [free.pop() for _ in range(shape.kept_blocks - len(in_place))]
        jobs.append(
            CompressionJob(
                uid=uid,
                block_table=table,
                target_blocks=fresh + in_place,
                num_entries=shape.num_blocks * BLOCK_SIZE - shape.missing,
                num_survivors=shape.num_survivors,
                num_observed=20,
                num_pinned=shape.num_pinned,
                query_buffer=2 * uid,
                keep=shape.kept_blocks * BLOCK_SIZE - shape.missing,
            )
        )
        check_job(jobs[-1], BLOCK_SIZE, scoring)
    return jobs


def check_equal(pool: KVPool, expected: KVPool, is_exact: bool) -> None:
    for name in TENSORS:
        actual, reference = getattr(pool, name), getattr(expected, name)
        if name == "scores" and not is_exact:
            torch.testing.assert_close(actual.cpu(), reference.cpu(), rtol=1e-5, atol=1e-7)
        elif reference is not None:
            assert torch.equal(actual.cpu(), reference.cpu()), name


@pytest.mark.parametrize("name", ["default", "spread", "all", "pool-first", "redundancy-lightning", "pinned"])
def test_a_batch_keeps_what_the_reference_keeps_of_each(name: str) -> None:
    scoring = ScoringOptions(**OPTIONS[name])
    jobs, pool = make_jobs(scoring), random_pool(scoring)
    batch = on_device(pool)
    kept = kept_by_kernels(jobs, batch, scoring)
    for row, job in zip(kept, jobs, strict=True):
        assert torch.equal(row, run_job(job, pool, scoring).kept)
    check_equal(batch, pool, is_exact=False)


@pytest.mark.parametrize("scoring", [PAPER_SCORING, FULL])
def test_neither_the_others_nor_strides_of_layers_change_a_bit(scoring: ScoringOptions) -> None:
    jobs, pool = make_jobs(scoring), random_pool(scoring)
    alone, together = on_device(pool), on_device(pool)
    expected = [kept_by_kernels([job], alone, scoring, SCRATCH_BYTES)[0] for job in reversed(jobs)][::-1]
    # One layer at a time.
    for row, reference in zip(kept_by_kernels(jobs, together, scoring, scratch_bytes=1), expected, strict=True):
        assert torch.equal(row, reference)
    check_equal(together, alone, is_exact=True)


class AllocatedMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, and the most there were at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0

    def __torch_dispatch__(self, func: Callable, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.zeros):
            size = result.untyped_storage().nbytes()
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(result, self._free, size)
        return result

    def _free(self, size: int) -> None:
        self.current -= size


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"observe": "all"},
        {"window": 64},
        {"pooling": "always"},
        {"redundancy": "lightning"},
        {"redundancy": "full", "pooling": "first"},
    ],
)
def test_memory_beside_the_pool_stays_below_its_limit(changes: dict) -> None:
    scoring = replace_fields(ScoringOptions(recent=4, recent_share=0.0, pin_share=0.0), changes)
    jobs, pool = make_jobs(scoring), on_device(random_pool(scoring))
    layer = len(jobs) * layer_bytes(56, 40, pool.geometry, scoring)
    with AllocatedMemory() as memory:
        assert [kept.shape[1] for kept in compress_layers(jobs, pool, scoring, layer)] == [1, 1]
    # More than a few numbers of each request were counted, and nearly all of what was announced.
    assert 0.5 * layer < memory.peak <= layer + 8192


def replace_fields(scoring: ScoringOptions, changes: dict) -> ScoringOptions:
    return ScoringOptions(**{name: getattr(scoring, name) for name in scoring.__struct_fields__} | changes)
