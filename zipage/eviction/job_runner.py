"""Every kind of job on one pool, from the scheduler's messages to the answers.

Compressions run in batches on one CUDA stream, copies to and from host memory beside them on another, each in the
order that suits it. That is right in any order and side by side, because no job writes what another one touches:

* A request has one job at a time: the next one comes when the last has been answered, so its swap-out never overlaps
  with its own compression.
* What a job writes is its request's alone: blocks that were free when the job was made, or, for a compression in
  place, blocks that nobody else holds and that are no longer in the prefix index, where others could find them; for a
  swap-out, host blocks, which are its request's until they have been copied back.
* Blocks that several requests hold, prefixes that they share, are only read. They are not freed, and so not written,
  before every job that reads them has been answered.
* A job reads the query buffer of its own interval; a request that goes on decoding meanwhile records in another one.
* Steps that were planned before a job have returned; later ones do not touch what it writes, and write nothing that it
  reads: a request in shadow mode writes behind its full blocks.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionJob, Job, JobAnswer, JobFailed, SwapDone, SwapIn, SwapOut
from zipage.eviction.compressor import Compressor
from zipage.eviction.job_queue import JobQueue
from zipage.eviction.job_spans import JobSpans
from zipage.eviction.journal import Journal
from zipage.eviction.lane import Lane
from zipage.execution.host_memory import HostMemory
from zipage.execution.pool import KVPool
from zipage.tracing import Tracer

# How long to wait for other messages while the device works.
_DEVICE_POLL_MS = 1


class JobRunner:
    """Compresses and swaps requests of one pool. On a CPU, jobs that have begun are done when `advance` returns.

    Where memory for a job is lacking, its answer is `JobFailed`; any other error is a defect.
    """

    def __init__(
        self,
        pool: KVPool,
        scoring: ScoringOptions,
        journal: Journal,
        host_memory: HostMemory,
        tracer: Tracer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compressor = Compressor(pool, scoring)
        self._host_memory = host_memory
        self._journal = journal
        self._spans = JobSpans(tracer)
        self._clock = clock
        self._compressions = JobQueue()
        self._swaps: deque[SwapOut | SwapIn] = deque()
        self._compression_lane = Lane(pool.device, is_timed=tracer.enabled)
        self._swap_lane = Lane(pool.device, is_timed=tracer.enabled)
        self._batch: Sequence[CompressionJob] = ()
        self._batch_began = 0.0
        self._swapped: Sequence[SwapOut | SwapIn] = ()

    def compile_kernels(self, longest: int) -> None:
        """On a GPU, compile what compressions of up to `longest` entries run."""
        self._compressor.compile_kernels(longest)

    def add(self, job: Job) -> None:
        """Take a job; it begins with `advance`."""
        self._journal.forget(job.uid)
        if isinstance(job, CompressionJob):
            self._compressions.add(job)
        else:
            self._swaps.append(job)

    @property
    def patience_ms(self) -> int | None:
        """How long to wait for another message before `advance` has something to do; None is for ever."""
        can_compress = self._compression_lane.is_free and len(self._compressions) > 0
        if can_compress or (self._swap_lane.is_free and self._swaps):
            return 0
        return None if self._compression_lane.is_free and self._swap_lane.is_free else _DEVICE_POLL_MS

    def advance(self) -> list[JobAnswer]:
        """Begin what can begin, and answer what is done."""
        answers = self._collect()
        if self._compression_lane.is_free and (batch := self._compressions.take_batch()):
            self._batch, self._batch_began = batch, self._clock()
            self._compression_lane.launch(lambda: self._compress(batch))
        if self._swap_lane.is_free and self._swaps:
            job = self._swaps.popleft()
            self._swapped = (job,)
            self._swap_lane.launch(lambda: [self._swap(job)])
        return answers + self._collect()

    def _collect(self) -> list[JobAnswer]:
        compressed = self._compression_lane.take_answers()
        if compressed:
            entries = sum(job.num_entries for job in self._batch)
            self._compressions.record(entries, self._clock() - self._batch_began)
            self._spans.compressed(self._batch, self._compression_lane.times)
        swapped = self._swap_lane.take_answers()
        if swapped:
            self._spans.swapped(self._swapped, self._swap_lane.times)
        return compressed + swapped

    def _compress(self, batch: Sequence[CompressionJob]) -> Sequence[JobAnswer]:
        in_place = [job.uid for job in batch if job.is_in_place]
        if in_place:
            self._journal.note(in_place)
        return self._compressor.run(batch)

    def _swap(self, job: SwapOut | SwapIn) -> JobAnswer:
        try:
            self._host_memory.run(job)
        except MemoryError as error:
            return JobFailed(job.uid, str(error))
        return SwapDone(job.uid)
