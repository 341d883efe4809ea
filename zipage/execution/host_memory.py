"""Host memory for the KV of swapped requests, and the copies between it and the pool."""

from dataclasses import dataclass

import torch

from zipage.execution.pool import KVPool
from zipage.messages import SwapIn, SwapOut


@dataclass(frozen=True)
class _Tensors:
    """What is copied of a request, in the pool or in host memory.

    Attributes:
        by_block: tensors `[L, blocks, ...]`.
        queries: `[L, query buffers or host slots, w, Hq, d]`.
    """

    by_block: list[torch.Tensor]
    queries: torch.Tensor


class HostMemory:
    """The host blocks and slots that swap jobs name; allocated when the first job comes, pinned for a GPU.

    Only the process that runs swap jobs has it, so it is gone with that process.
    """

    def __init__(self, pool: KVPool) -> None:
        self._pool = _pool_tensors(pool)
        self._sizes = pool.geometry.num_host_blocks, pool.geometry.num_host_slots
        self._host: _Tensors | None = None

    def run(self, job: SwapOut | SwapIn) -> None:
        """Copy a request's blocks and recorded queries to host memory, or back.

        Raises:
            MemoryError: there is less host memory than was promised.
        """
        if self._host is None:
            try:
                self._host = self._allocate()
            except RuntimeError as error:
                raise MemoryError(str(error)) from error
        places = (job.host_blocks, job.host_slot), (job.block_table, job.query_buffer)
        if isinstance(job, SwapOut):
            _copy(self._host, *places[0], self._pool, *places[1])
        else:
            _copy(self._pool, *places[1], self._host, *places[0])

    def _allocate(self) -> _Tensors:
        num_blocks, num_slots = self._sizes
        pinned = self._pool.queries.device.type == "cuda"

        def like(tensor: torch.Tensor, count: int) -> torch.Tensor:
            shape = (tensor.shape[0], count, *tensor.shape[2:])
            return torch.empty(shape, dtype=tensor.dtype, pin_memory=pinned)

        blocks = [like(tensor, num_blocks) for tensor in self._pool.by_block]
        return _Tensors(blocks, like(self._pool.queries, num_slots))


def _pool_tensors(pool: KVPool) -> _Tensors:
    by_block = [pool.keys, pool.values, pool.scores]
    if pool.observed is not None:
        by_block.append(pool.observed)
    return _Tensors(by_block, pool.queries)


def _copy(
    target: _Tensors,
    target_blocks: list[int],
    target_buffer: int,
    source: _Tensors,
    source_blocks: list[int],
    source_buffer: int,
) -> None:
    for to, of in zip(target.by_block, source.by_block, strict=True):
        to_blocks = torch.tensor(target_blocks, device=to.device)
        of_blocks = torch.tensor(source_blocks, device=of.device)
        # Layer by layer, so that no second copy of the whole request is made on the way.
        for layer in range(to.shape[0]):
            to[layer].index_copy_(0, to_blocks, of[layer].index_select(0, of_blocks).to(to.device))
    # A request that is never compressed again records no queries.
    if target_buffer >= 0 and source_buffer >= 0:
        target.queries[:, target_buffer].copy_(source.queries[:, source_buffer])
