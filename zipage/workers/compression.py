"""The compression worker: opens the decode worker's KV pool and runs the scheduler's compression jobs."""

import torch
import zmq

from zipage.errors import EngineError
from zipage.eviction.job import run_job
from zipage.execution.pool import KVPool, open_pool
from zipage.links import connect_compression_link
from zipage.messages import CompressionDone, OpenPool, PoolOpened
from zipage.workers.process import WorkerContext, report_ready, run_worker


def main(context: WorkerContext) -> None:
    """Serve jobs until the process is to stop."""
    # Cores beyond one are the decode worker's; on a GPU this process only launches.
    torch.set_num_threads(1)
    link = connect_compression_link(zmq.Context(), context.runtime_dir, context.lifeline_fd)
    pool: KVPool | None = None
    while True:
        command = link.receive()
        if isinstance(command, OpenPool):
            pool = open_pool(command.export, context.pool_fd)
            link.send(PoolOpened())
            report_ready(context)
            continue
        if pool is None:
            raise EngineError("a compression job came before the pool")
        result = run_job(command, pool, context.config.scoring)
        if pool.device.type == "cuda":
            torch.cuda.synchronize(pool.device)
        link.send(CompressionDone(command.uid, result.num_pinned))


if __name__ == "__main__":
    run_worker("compression", main)
