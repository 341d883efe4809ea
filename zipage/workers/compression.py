"""The compression worker: opens the decode worker's KV pool and runs the scheduler's jobs."""

import importlib

import torch
import zmq

from zipage.engine_messages import (
    CompressionCommand,
    CompressionStarted,
    CompressionWorkerMessage,
    OpenPool,
    PoolOpened,
)
from zipage.errors import EngineError
from zipage.eviction.job_runner import JobRunner
from zipage.eviction.journal import Journal
from zipage.eviction.lengths import longest_compression
from zipage.execution.host_memory import HostMemory
from zipage.execution.pool import open_pool
from zipage.links import Link, connect_compression_link
from zipage.workers.process import WorkerContext, report_ready, run_worker

CompressionLink = Link[CompressionCommand, CompressionWorkerMessage]


def prepare() -> None:
    """Do what the first job on a GPU would do and what needs no GPU: import kernels, and have Triton make its key.

    That key is a hash of Triton's own files, hundreds of megabytes, and part of the name of all that it has compiled.
    """
    # Triton takes long to import, and a CPU engine does without.
    importlib.import_module("zipage.eviction.kernel_job")
    from triton.runtime.cache import triton_key

    triton_key()


def main(context: WorkerContext) -> None:
    """Serve jobs until the process is to stop."""
    # Cores beyond one are the decode worker's; on a GPU this process only launches.
    torch.set_num_threads(1)
    link = connect_compression_link(zmq.Context(), context.runtime_dir, context.lifeline_fd, context.tracer)
    link.send(CompressionStarted())
    runner = _open_pool(context, link, link.receive())
    report_ready(context)
    while True:
        for command in link.receive_waiting(runner.patience_ms):
            if isinstance(command, OpenPool):
                # Another decode worker has come; the jobs before this message were in the pool of the one before.
                runner = _open_pool(context, link, command)
            else:
                runner.add(command)
        for answer in runner.advance():
            link.send(answer)


def _open_pool(context: WorkerContext, link: CompressionLink, command: CompressionCommand) -> JobRunner:
    """Open a pool and say so; the runner of its jobs."""
    if not isinstance(command, OpenPool):
        raise EngineError("a compression job came before the pool")
    pool, journal = open_pool(command.export, context.pool_fd), Journal(context.journal_fd)
    host_memory = HostMemory(pool, context.swap_fd)
    runner = JobRunner(pool, context.config.scoring, journal, host_memory, context.tracer)
    # What a worker before this one has compiled is in Triton's cache, and requests wait.
    if command.export.geometry.num_query_slots and not journal.has_predecessor:
        runner.compile_kernels(longest_compression(context.config, command.export))
    link.send(PoolOpened(journal.uids))
    return runner


if __name__ == "__main__":
    run_worker("compression", main, prepare)
