"""The compression worker: opens the decode worker's KV pool and runs the scheduler's jobs."""

import torch
import zmq

from zipage.errors import EngineError
from zipage.eviction.job_runner import JobRunner
from zipage.eviction.journal import Journal
from zipage.eviction.lengths import longest_compression
from zipage.execution.host_memory import HostMemory
from zipage.execution.pool import open_pool
from zipage.links import connect_compression_link
from zipage.messages import OpenPool, PoolOpened
from zipage.workers.process import WorkerContext, report_ready, run_worker


def main(context: WorkerContext) -> None:
    """Serve jobs until the process is to stop."""
    # Cores beyond one are the decode worker's; on a GPU this process only launches.
    torch.set_num_threads(1)
    link = connect_compression_link(zmq.Context(), context.runtime_dir, context.lifeline_fd)
    command = link.receive()
    if not isinstance(command, OpenPool):
        raise EngineError("a compression job came before the pool")
    pool, journal = open_pool(command.export, context.pool_fd), Journal(context.journal_fd)
    host_memory = HostMemory(pool, context.swap_fd)
    runner = JobRunner(pool, context.config.scoring, journal, host_memory, context.tracer)
    if command.export.geometry.num_query_slots:
        runner.compile_kernels(longest_compression(context.config, command.export))
    link.send(PoolOpened(journal.uids))
    report_ready(context)
    while True:
        for job in link.receive_waiting(runner.patience_ms):
            if isinstance(job, OpenPool):
                raise EngineError("the scheduler sent the pool twice")
            runner.add(job)
        for answer in runner.advance():
            link.send(answer)


if __name__ == "__main__":
    run_worker("compression", main)
