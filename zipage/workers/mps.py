"""The MPS worker: keeps the engine's own CUDA MPS daemon."""

from zipage.mps import MpsDaemon
from zipage.workers.process import WorkerContext, report_ready, run_worker

_ANSWER_SECONDS = 20.0


def main(context: WorkerContext) -> None:
    """Start the daemon, and end it when this process is to stop."""
    with MpsDaemon(context.runtime_dir) as daemon:
        # The engine can still get ready without a daemon then.
        seconds = min(_ANSWER_SECONDS, context.config.ready_timeout / 2)
        daemon.wait_until_it_answers(seconds, context.lifeline_fd)
        report_ready(context)
        daemon.wait(context.lifeline_fd)


if __name__ == "__main__":
    run_worker("mps", main)
