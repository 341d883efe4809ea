"""The decode worker: loads the model, exports the KV pool once, and runs the scheduler's steps."""

from typing import TYPE_CHECKING

import zmq

from zipage import tracing
from zipage.engine_messages import PoolExport
from zipage.execution.executor import Executor
from zipage.execution.startup import start_decoding
from zipage.links import Stopped, connect_decode_link
from zipage.workers.process import WorkerContext, report_ready, run_worker

if TYPE_CHECKING:
    from zipage.execution.device_executor import DeviceExecutor


def main(context: WorkerContext) -> None:
    """Serve steps until the process is to stop."""
    state = start_decoding(context.config, context.pool_fd)
    if isinstance(state.executor, Executor):
        _serve_in_turn(context, state.executor, state.export)
    else:
        _serve_ahead(context, state.executor, state.export)


def _serve_in_turn(context: WorkerContext, executor: Executor, export: PoolExport) -> None:
    """Answer every step before the next one is received."""
    link = connect_decode_link(zmq.Context(), context.runtime_dir, context.lifeline_fd, context.tracer)
    link.send(export)
    report_ready(context)
    while True:
        step = link.receive()
        start = tracing.now()
        result = executor.execute(step)
        context.tracer.span("device", "step", start, tracing.now(), step=step.step_id, rows=len(step.work))
        link.send(result)


def _serve_ahead(context: WorkerContext, executor: "DeviceExecutor", export: PoolExport) -> None:
    """Launch every step when it comes, and answer when the device has computed it."""
    # Triton takes long to import, and a CPU engine does without.
    from zipage.execution.compile_spans import trace_compilations
    from zipage.execution.returned_steps import ReturnedSteps
    from zipage.execution.step_times import StepTimes

    trace_compilations(context.tracer)
    returned = ReturnedSteps(context.lifeline_fd, StepTimes(context.tracer).write)
    link = connect_decode_link(zmq.Context(), context.runtime_dir, returned.wake_fd, context.tracer)
    link.send(export)
    report_ready(context)
    while True:
        try:
            step = link.receive()
        except Stopped:
            # The link stops at a result too, of which it knows nothing.
            result = returned.take()
            if result is None:
                raise
            link.send(result)
        else:
            start = tracing.now()
            returned.put(executor.launch(step))
            context.tracer.span("host", "launch", start, tracing.now(), step=step.step_id)


if __name__ == "__main__":
    run_worker("decode", main)
