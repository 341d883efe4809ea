"""Compressions of a batch of requests: in bounded memory, and what happens where there is less than that."""

from collections.abc import Sequence

import torch

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionDone, CompressionJob, JobFailed
from zipage.eviction.job import check_job, compress_layers
from zipage.eviction.job_tiers import JobTiers
from zipage.eviction.scratch import SCRATCH_BYTES, layer_bytes, requests_at_once
from zipage.execution.pool import KVPool


class Compressor:
    """Compresses requests of one pool; on a GPU, launches that on the current stream."""

    def __init__(self, pool: KVPool, scoring: ScoringOptions, scratch_bytes: int = SCRATCH_BYTES) -> None:
        self._pool = pool
        self._scoring = scoring
        self._scratch_bytes = scratch_bytes

    def compile_kernels(self, longest: int) -> None:
        """On a GPU, compile what jobs on up to `longest` entries run, lest the first ones wait for it for seconds."""
        if self._pool.device.type == "cuda":
            # Triton takes long to import, and a CPU engine does without.
            from zipage.eviction.kernel_job import compile_kernels

            compile_kernels(self._pool, self._scoring, longest)
            torch.cuda.synchronize(self._pool.device)

    def run(self, jobs: Sequence[CompressionJob]) -> list[CompressionDone | JobFailed]:
        """Do jobs, of which no two touch the same block unless both only read it; answers in their order.

        Where a batch runs out of memory before it has overwritten anything, its jobs are tried one by one. A job for
        which even then there is too little fails.

        Raises:
            EngineError: a job contradicts itself or the scoring options; none has begun.
        """
        for job in jobs:
            check_job(job, self._pool.geometry.block_size, self._scoring)
        size = self._batch_size(jobs)
        parts = [jobs[first : first + size] for first in range(0, len(jobs), size)]
        return [answer for part in parts for answer in self._run(part)]

    def _batch_size(self, jobs: Sequence[CompressionJob]) -> int:
        if self._pool.device.type == "cpu":
            return 1
        most_entries, most_kept = max(job.num_entries for job in jobs), max(job.keep for job in jobs)
        bytes_of_layer = layer_bytes(most_entries, most_kept, self._pool.geometry, self._scoring)
        return requests_at_once(bytes_of_layer, self._scratch_bytes)

    def _run(self, jobs: Sequence[CompressionJob]) -> list[CompressionDone | JobFailed]:
        has_written = False
        try:
            for _ in compress_layers(jobs, self._pool, self._scoring, self._scratch_bytes):
                has_written = True
        except (torch.OutOfMemoryError, MemoryError) as error:
            source_is_whole = not (has_written and any(job.is_in_place for job in jobs))
            if len(jobs) > 1 and source_is_whole:
                return [answer for job in jobs for answer in self._run([job])]
            return [JobFailed(job.uid, str(error)) for job in jobs]
        return [CompressionDone(job.uid, JobTiers.of(job, self._scoring).pinned_survivors()) for job in jobs]
