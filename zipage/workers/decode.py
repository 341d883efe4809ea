"""The decode worker: loads the model, exports the KV pool once, and runs the scheduler's steps."""

import zmq

from zipage.execution.startup import start_decoding
from zipage.links import connect_decode_link
from zipage.workers.process import WorkerContext, report_ready, run_worker


def main(context: WorkerContext) -> None:
    """Serve steps until the process is to stop."""
    state = start_decoding(context.config, context.pool_fd)
    link = connect_decode_link(zmq.Context(), context.runtime_dir, context.lifeline_fd)
    link.send(state.export)
    report_ready(context)
    while True:
        link.send(state.executor.execute(link.receive()))


if __name__ == "__main__":
    run_worker("decode", main)
