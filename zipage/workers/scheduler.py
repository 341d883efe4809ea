"""The scheduler process: passes messages between the `Scheduler` and the other workers, and never lets a step wait."""

import asyncio
import time

import uvloop
import zmq.asyncio

from zipage import tracing
from zipage.errors import EngineError
from zipage.links import SchedulerLinks, bind_scheduler_links, run_until_stopped
from zipage.messages import (
    AbortTokens,
    OpenPool,
    PoolExport,
    PoolOpened,
    StatusQuery,
    StepResult,
    SubmitTokens,
    TokenOutput,
    TokenOutputs,
)
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.scheduler import Scheduler
from zipage.scheduling.spans import SchedulerSpans
from zipage.scheduling.status import engine_status
from zipage.workers.process import WorkerContext, report_ready, run_worker

_DEADLINE_CHECK_SECONDS = 0.05


class SchedulerProcess:
    """One loop for each link, and one for deadlines, around one `Scheduler`."""

    def __init__(self, context: WorkerContext, links: SchedulerLinks, export: PoolExport) -> None:
        self._context = context
        self._links = links
        self._export = export
        self._scheduler = Scheduler(SchedulerLimits.from_config(context.config, export.geometry, export.max_model_len))
        self._spans = SchedulerSpans(context.tracer, self._scheduler)

    def report_ready(self) -> None:
        report_ready(self._context, engine_status(self._scheduler, self._context.config, self._export, query_id=0))

    async def serve_tokenizer(self) -> None:
        """Requests, aborts and status queries in; refusals, abort answers and status out."""
        while True:
            message = await self._links.tokenizer.receive()
            start, now = tracing.now(), time.monotonic()
            match message:
                case SubmitTokens(requests):
                    refused = self._scheduler.add(requests, now)
                    self._spans.added(start, requests)
                    for refusal in refused:
                        await self._links.tokenizer.send(refusal)
                case AbortTokens(uids):
                    await self._send_outputs(self._scheduler.abort(uids, now))
                case StatusQuery(query_id):
                    status = engine_status(self._scheduler, self._context.config, self._export, query_id)
                    await self._links.tokenizer.send(status)
            await self._send_work()

    async def serve_decode(self) -> None:
        """Step results in; the next step, compression jobs and tokens out."""
        while True:
            result = await self._links.decode.receive()
            if not isinstance(result, StepResult):
                raise EngineError("the decode worker exported its pool twice")
            start = tracing.now()
            outputs = self._scheduler.finish_step(result, time.monotonic())
            self._spans.finished_step(start, result, outputs)
            await self._send_work()
            await self._send_outputs(outputs)

    async def serve_compression(self) -> None:
        """Finished jobs in."""
        while True:
            answer = await self._links.compression.receive()
            if isinstance(answer, PoolOpened):
                raise EngineError("the compression worker opened the pool twice")
            start = tracing.now()
            outputs = self._scheduler.finish_job(answer, time.monotonic())
            self._spans.finished_job(start, answer)
            await self._send_work()
            await self._send_outputs(outputs)

    async def watch_deadlines(self) -> None:
        """Requests whose deadline passes while nothing else happens."""
        while True:
            await asyncio.sleep(_DEADLINE_CHECK_SECONDS)
            if outputs := self._scheduler.expire(time.monotonic()):
                await self._send_work()
                await self._send_outputs(outputs)

    async def _send_work(self) -> None:
        """Whatever can begin."""
        start = tracing.now()
        while (step := self._scheduler.plan()) is not None:
            self._spans.planned(start, step)
            await self._links.decode.send(step)
            start = tracing.now()
        for job in self._scheduler.plan_jobs():
            self._spans.began_job(start, job)
            await self._links.compression.send(job)
            start = tracing.now()

    async def _send_outputs(self, outputs: list[TokenOutput]) -> None:
        if outputs:
            await self._links.tokenizer.send(TokenOutputs(outputs))


async def serve(context: WorkerContext, links: SchedulerLinks) -> None:
    """Bring both workers to the same pool, then serve without end."""
    export = await links.decode.receive()
    if not isinstance(export, PoolExport):
        raise EngineError("the decode worker did not begin with its pool")
    await links.compression.send(OpenPool(export))
    if not isinstance(await links.compression.receive(), PoolOpened):
        raise EngineError("the compression worker did not begin by opening the pool")
    process = SchedulerProcess(context, links, export)
    process.report_ready()
    await asyncio.gather(
        process.serve_tokenizer(),
        process.serve_decode(),
        process.serve_compression(),
        process.watch_deadlines(),
    )


async def _run(context: WorkerContext) -> None:
    links = bind_scheduler_links(zmq.asyncio.Context(), context.runtime_dir)
    try:
        await run_until_stopped(context.lifeline_fd, serve(context, links))
    finally:
        links.close()


def main(context: WorkerContext) -> None:
    """Serve until the process is to stop."""
    uvloop.run(_run(context))


if __name__ == "__main__":
    run_worker("scheduler", main)
