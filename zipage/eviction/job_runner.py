"""Every kind of job on one pool, from the scheduler's message to the answer."""

import torch

from zipage.config import ScoringOptions
from zipage.eviction.job import run_job
from zipage.execution.host_memory import HostMemory
from zipage.execution.pool import KVPool
from zipage.messages import CompressionDone, CompressionJob, Job, JobAnswer, JobFailed, SwapDone


class JobRunner:
    """Compresses and swaps requests of one pool; each job has finished on the device when `run` returns."""

    def __init__(self, pool: KVPool, scoring: ScoringOptions) -> None:
        self._pool = pool
        self._scoring = scoring
        self._host_memory = HostMemory(pool)

    def compile_kernels(self, num_entries: int) -> None:
        """On a GPU, compile what jobs on `num_entries` entries run, lest the first ones wait for it for seconds."""
        if self._pool.device.type == "cuda":
            # Triton takes long to import, and a CPU engine does without.
            from zipage.eviction.kernel_job import compile_kernels

            compile_kernels(self._pool, self._scoring, num_entries)
            torch.cuda.synchronize(self._pool.device)

    def run(self, job: Job) -> JobAnswer:
        """Do a job. Where memory for it is lacking, the answer is `JobFailed`; any other error is a defect."""
        try:
            answer = self._run(job)
            if self._pool.device.type == "cuda":
                torch.cuda.synchronize(self._pool.device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            return JobFailed(job.uid, str(error))
        return answer

    def _run(self, job: Job) -> JobAnswer:
        if isinstance(job, CompressionJob):
            return CompressionDone(job.uid, run_job(job, self._pool, self._scoring).num_pinned)
        self._host_memory.run(job)
        return SwapDone(job.uid)
