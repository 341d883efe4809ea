"""The compression worker: opens the decode worker's KV pool and runs the scheduler's jobs."""

import torch
import zmq

from zipage import tracing
from zipage.errors import EngineError
from zipage.eviction.job_runner import JobRunner
from zipage.execution.pool import open_pool
from zipage.links import connect_compression_link
from zipage.messages import OpenPool, PoolOpened
from zipage.scheduling.spans import job_kind
from zipage.workers.process import WorkerContext, report_ready, run_worker


def main(context: WorkerContext) -> None:
    """Serve jobs until the process is to stop."""
    # Cores beyond one are the decode worker's; on a GPU this process only launches.
    torch.set_num_threads(1)
    link = connect_compression_link(zmq.Context(), context.runtime_dir, context.lifeline_fd)
    command = link.receive()
    if not isinstance(command, OpenPool):
        raise EngineError("a compression job came before the pool")
    runner = JobRunner(open_pool(command.export, context.pool_fd), context.config.scoring)
    if command.export.geometry.num_query_slots:
        runner.compile_kernels(context.config.effective_kv_budget)
    link.send(PoolOpened())
    report_ready(context)
    while True:
        job = link.receive()
        if isinstance(job, OpenPool):
            raise EngineError("the scheduler sent the pool twice")
        start = tracing.now()
        answer = runner.run(job)
        context.tracer.span("device", job_kind(job), start, tracing.now(), uids=[job.uid])
        link.send(answer)


if __name__ == "__main__":
    run_worker("compression", main)
