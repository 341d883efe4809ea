"""Copies of a request between the pool and host memory, which outlives the process that makes them."""

import dataclasses
import errno
import os
from collections.abc import Iterator

import msgspec
import pytest
import torch
from small_pools import small_geometry

from zipage.engine_messages import SwapIn, SwapOut
from zipage.execution.host_memory import HostMemory
from zipage.execution.memory_file import MemoryFile
from zipage.execution.pool import KVPool, allocate_on_device

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def memory_file() -> Iterator[int]:
    """The descriptor of an empty memory file."""
    descriptor = os.memfd_create("test")
    yield descriptor
    os.close(descriptor)


def random_pool(*, accumulate: bool = False) -> KVPool:
    geometry = small_geometry(
        num_layers=2,
        num_blocks=12,
        block_size=8,
        num_query_heads=4,
        num_kv_heads=2,
        head_dim=4,
        num_query_slots=3,
        num_query_buffers=6,
        window=0 if accumulate else 6,
        accumulate=accumulate,
        num_host_blocks=5,
        num_host_slots=2,
    )
    pool = allocate_on_device(geometry, DEVICE)
    torch.manual_seed(1)
    for tensor in tensors(pool):
        tensor.normal_()
    return pool


def tensors(pool: KVPool) -> list[torch.Tensor]:
    return [
        tensor for tensor in (pool.keys, pool.values, pool.scores, pool.observed, pool.queries) if tensor is not None
    ]


def lose(pool: KVPool) -> list[torch.Tensor]:
    """Overwrite everything with zeros; returns copies of what was there."""
    before = [tensor.clone() for tensor in tensors(pool)]
    for tensor in tensors(pool):
        tensor.zero_()
    return before


def check_came_back(pool: KVPool, before: list[torch.Tensor], blocks: list[int], old_blocks: list[int]) -> None:
    """The request is there, in other blocks and query buffer 5 instead of 3, and nothing else has been written."""
    *by_block, queries = zip(tensors(pool), before, strict=True)
    for tensor, old in by_block:
        assert torch.equal(tensor[:, blocks], old[:, old_blocks])
        assert tensor.count_nonzero() == old[:, old_blocks].count_nonzero()
    assert torch.equal(queries[0][:, 5], queries[1][:, 3])
    assert queries[0].count_nonzero() == queries[1][:, 3].count_nonzero()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("scratch_bytes", [1, 1100, 1 << 20], ids=["block-by-block", "two-by-two", "at-once"])
@pytest.mark.parametrize("host_blocks", [[1, 4, 2], [2, 3, 4], [4, 3, 0]], ids=["scattered", "in-a-row", "backwards"])
def test_a_request_comes_back_to_other_blocks_as_it_was(
    accumulate: bool, scratch_bytes: int, host_blocks: list[int]
) -> None:
    pool = random_pool(accumulate=accumulate)
    memory = HostMemory(pool, scratch_bytes=scratch_bytes)
    others = [block for block in range(5) if block not in host_blocks]
    memory.run(SwapOut(7, [4, 0, 9], 3, host_blocks, 1))
    memory.run(SwapOut(8, [5, 6], 0, others, 0))
    before = lose(pool)
    memory.run(SwapIn(7, [2, 11, 3], 5, host_blocks, 1))
    check_came_back(pool, before, [2, 11, 3], [4, 0, 9])


def test_a_request_that_records_nothing_takes_no_queries_along() -> None:
    pool = random_pool()
    memory = HostMemory(pool)
    memory.run(SwapOut(7, [4], 3, [1], 1))
    queries = pool.queries.clone()
    memory.run(SwapIn(7, [2], -1, [1], 1))
    assert torch.equal(pool.queries, queries)


def test_the_next_worker_finds_what_the_last_one_has_saved(memory_file: int) -> None:
    pool = random_pool()
    HostMemory(pool, os.dup(memory_file)).run(SwapOut(7, [4, 0, 9], 3, [1, 4, 2], 1))
    before = lose(pool)
    HostMemory(pool, memory_file).run(SwapIn(7, [2, 11, 3], 5, [1, 4, 2], 1))
    check_came_back(pool, before, [2, 11, 3], [4, 0, 9])


def test_memory_is_taken_when_the_first_job_comes(memory_file: int) -> None:
    memory = HostMemory(random_pool(), memory_file)
    assert os.fstat(memory_file).st_size == 0
    memory.run(SwapOut(7, [4], 3, [1], 1))
    assert os.fstat(memory_file).st_size > 0


def test_memory_that_cannot_be_had_is_said_and_nothing_else_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = random_pool()
    memory = HostMemory(pool)

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryError, match="No space left"):
        memory.run(SwapOut(7, [4], 3, [1], 1))
    monkeypatch.undo()
    memory.run(SwapOut(7, [4], 3, [1], 1))


def test_more_memory_than_there_can_be_is_an_error() -> None:
    pool = random_pool()
    endless = msgspec.structs.replace(pool.geometry, num_host_blocks=1 << 50)
    with pytest.raises(MemoryError, match="memory"):
        HostMemory(dataclasses.replace(pool, geometry=endless)).run(SwapOut(7, [4], 3, [1], 1))


def test_parts_of_a_tensor_are_reserved_and_nothing_else(memory_file: int) -> None:
    page = 4096
    file = MemoryFile.sized(memory_file, [((3,), torch.float32), ((8, page), torch.uint8)])
    file.reserve(1, 2, 3)
    assert os.fstat(memory_file).st_blocks * 512 == 3 * page
    file.tensors[1][2:5] = 1
    assert os.fstat(memory_file).st_blocks * 512 == 3 * page
    assert [tensor.shape for tensor in file.tensors] == [(3,), (8, page)]
