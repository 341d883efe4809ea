"""Copies of a request between the pool and host memory."""

import dataclasses

import msgspec
import pytest
import torch

from zipage.config import ScoringOptions
from zipage.eviction import job_runner
from zipage.eviction.job_runner import JobRunner
from zipage.execution.host_memory import HostMemory
from zipage.execution.pool import KVPool, allocate_on_device
from zipage.messages import JobFailed, PoolGeometry, SwapDone, SwapIn, SwapOut


def random_pool(*, accumulate: bool) -> KVPool:
    geometry = PoolGeometry(
        num_layers=2,
        num_blocks=12,
        block_size=8,
        num_query_heads=4,
        num_kv_heads=2,
        head_dim=4,
        dtype="float32",
        num_query_slots=3,
        num_query_buffers=6,
        window=0 if accumulate else 6,
        accumulate=accumulate,
        num_host_blocks=5,
        num_host_slots=2,
    )
    pool = allocate_on_device(geometry, torch.device("cpu"))
    torch.manual_seed(1)
    for tensor in tensors(pool):
        tensor.normal_()
    return pool


def tensors(pool: KVPool) -> list[torch.Tensor]:
    return [
        tensor for tensor in (pool.keys, pool.values, pool.scores, pool.observed, pool.queries) if tensor is not None
    ]


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_request_comes_back_to_other_blocks_as_it_was(accumulate: bool) -> None:
    pool = random_pool(accumulate=accumulate)
    before = [tensor.clone() for tensor in tensors(pool)]
    runner = JobRunner(pool, ScoringOptions())
    assert runner.run(SwapOut(7, [4, 0, 9], 3, [1, 4, 2], 1)) == SwapDone(7)
    assert runner.run(SwapOut(8, [5, 6], 0, [3, 0], 0)) == SwapDone(8)
    for tensor in tensors(pool):
        tensor.zero_()
    assert runner.run(SwapIn(7, [2, 11, 3], 5, [1, 4, 2], 1)) == SwapDone(7)
    *by_block, queries = zip(tensors(pool), before, strict=True)
    for tensor, old in by_block:
        assert torch.equal(tensor[:, [2, 11, 3]], old[:, [4, 0, 9]])
        # Nothing else was written.
        assert tensor.count_nonzero() == old[:, [4, 0, 9]].count_nonzero()
    assert torch.equal(queries[0][:, 5], queries[1][:, 3])
    assert queries[0].count_nonzero() == queries[1][:, 3].count_nonzero()


def test_a_request_that_records_nothing_takes_no_queries_along() -> None:
    pool = random_pool(accumulate=False)
    memory = HostMemory(pool)
    memory.run(SwapOut(7, [4], 3, [1], 1))
    queries = pool.queries.clone()
    memory.run(SwapIn(7, [2], -1, [1], 1))
    assert torch.equal(pool.queries, queries)


def test_lack_of_memory_fails_the_job_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = JobRunner(random_pool(accumulate=False), ScoringOptions())

    def lacking(*args: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 1 GiB")

    monkeypatch.setattr(job_runner.HostMemory, "run", lacking)
    assert runner.run(SwapOut(7, [4], 3, [1], 1)) == JobFailed(7, "tried to allocate 1 GiB")
    monkeypatch.undo()
    assert runner.run(SwapOut(7, [4], 3, [1], 1)) == SwapDone(7)


def test_host_memory_that_cannot_be_had_fails_the_job() -> None:
    pool = random_pool(accumulate=False)
    endless = msgspec.structs.replace(pool.geometry, num_host_blocks=1 << 50)
    runner = JobRunner(dataclasses.replace(pool, geometry=endless), ScoringOptions())
    answer = runner.run(SwapOut(7, [4], 3, [1], 1))
    assert isinstance(answer, JobFailed)
    assert "memory" in answer.reason


def test_other_errors_are_not_hidden() -> None:
    runner = JobRunner(random_pool(accumulate=False), ScoringOptions())
    with pytest.raises(IndexError):
        runner.run(SwapOut(7, [400], 3, [1], 1))
