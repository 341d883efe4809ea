"""Host memory for the KV of swapped requests, and the copies between it and the pool."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zipage.engine_messages import SwapIn, SwapOut
from zipage.execution.memory_file import MemoryFile
from zipage.execution.pool import KVPool
from zipage.execution.upload import upload

# Of a GPU's memory, what is on its way at a time, at least one block.
SCRATCH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Places:
    """Some blocks, or the query buffer, of a request: their indices in the pool and, in the same order, in the file."""

    pool: Sequence[int]
    host: Sequence[int]


@dataclass(frozen=True)
class _Run:
    """Consecutive numbers in a list: the place of the first one in the list, that number, and how many they are."""

    offset: int
    first: int
    count: int


class HostMemory:
    """The host blocks and slots that swap jobs name, in a memory file that is sized when the first job comes.

    Every block, and every query buffer, lies there in one piece with all its layers. On a GPU the file is pinned, and
    copies are made on the current stream, without waiting for the device.
    """

    def __init__(self, pool: KVPool, descriptor: int | None = None, scratch_bytes: int = SCRATCH_BYTES) -> None:
        """`descriptor` is of a memory file that outlives this process, where there is one."""
        self._pool = pool
        self._descriptor = descriptor
        self._scratch_bytes = scratch_bytes
        self._file: MemoryFile | None = None

    def run(self, job: SwapOut | SwapIn) -> None:
        """Copy a request's blocks and recorded queries to host memory, or back.

        Raises:
            MemoryError: there is less host memory than was promised, or no device memory for what is on its way.
        """
        blocks = _Places(job.block_table, job.host_blocks)
        # A request that is never compressed again records no queries.
        buffer = _Places([job.query_buffer], [job.host_slot]) if min(job.query_buffer, job.host_slot) >= 0 else None
        try:
            file = self._open()
            for index, tensor in enumerate(self._pool_tensors()):
                places = buffer if tensor is self._pool.queries else blocks
                if places is not None and tensor.numel():
                    self._copy(job, file, index, tensor.transpose(0, 1), places)
        except (OSError, torch.OutOfMemoryError) as error:
            raise MemoryError(str(error)) from error

    def _pool_tensors(self) -> list[Tensor]:
        """What is copied of a request, all `[L, blocks or query buffers, ...]`."""
        pool = self._pool
        observed = [] if pool.observed is None else [pool.observed]
        return [pool.keys, pool.values, pool.scores, *observed, pool.queries]

    def _open(self) -> MemoryFile:
        if self._file is None:
            if self._descriptor is None:
                self._descriptor = os.memfd_create("swap")
            geometry = self._pool.geometry
            layout = []
            for tensor in self._pool_tensors():
                count = geometry.num_host_slots if tensor is self._pool.queries else geometry.num_host_blocks
                layout.append(((count, tensor.shape[0], *tensor.shape[2:]), tensor.dtype))
            file = MemoryFile.sized(self._descriptor, layout)
            if self._pool.device.type == "cuda":
                file.pin()
            self._file = file
        return self._file

    def _copy(self, job: SwapOut | SwapIn, file: MemoryFile, index: int, in_pool: Tensor, places: _Places) -> None:
        """Copy places of one tensor of the pool, seen as `[places, L, ...]`, through `scratch_bytes` on the device."""
        (indices,) = upload([places.pool], in_pool.device)
        at_once = max(1, self._scratch_bytes // (in_pool[0].numel() * in_pool.element_size()))
        copy = _copy_out if isinstance(job, SwapOut) else _copy_in
        for start in range(0, len(places.pool), at_once):
            stretch = slice(start, start + at_once)
            copy(file, index, list(_runs(places.host[stretch])), in_pool, indices[stretch])


def _copy_out(file: MemoryFile, index: int, runs: list[_Run], in_pool: Tensor, indices: Tensor) -> None:
    """Gather what `indices` name on the device, then copy it to the file's tensor `index`."""
    on_device = in_pool.index_select(0, indices)
    for run in runs:
        file.reserve(index, run.first, run.count)
        in_file = file.tensors[index][run.first : run.first + run.count]
        in_file.copy_(on_device[run.offset : run.offset + run.count], non_blocking=True)


def _copy_in(file: MemoryFile, index: int, runs: list[_Run], in_pool: Tensor, indices: Tensor) -> None:
    """The other way round."""
    on_device = torch.empty((len(indices), *in_pool.shape[1:]), dtype=in_pool.dtype, device=in_pool.device)
    for run in runs:
        in_file = file.tensors[index][run.first : run.first + run.count]
        on_device[run.offset : run.offset + run.count].copy_(in_file, non_blocking=True)
    in_pool.index_copy_(0, indices, on_device)


def _runs(numbers: Sequence[int]) -> Iterator[_Run]:
    begin = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield _Run(begin, numbers[begin], end - begin)
            begin = end
