"""The scheduler process: passes messages between the `Scheduler` and the other workers, and never lets a step wait."""

import asyncio
import time

import uvloop
import zmq.asyncio

from zipage import tracing
from zipage.engine_messages import (
    AbortTokens,
    CompressionStarted,
    JobAnswer,
    OpenPool,
    PoolExport,
    PoolOpened,
    SubmitTokens,
    TokenOutput,
    TokenOutputs,
)
from zipage.links import SchedulerLinks, bind_scheduler_links, run_until_stopped
from zipage.messages import Status, StatusQuery
from zipage.scheduling.handshake import PoolHandshake
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.scheduler import Scheduler
from zipage.scheduling.spans import SchedulerSpans
from zipage.scheduling.status import engine_status
from zipage.workers.process import WorkerContext, report_ready, run_worker

_DEADLINE_CHECK_SECONDS = 0.05


class SchedulerProcess:
    """One loop for each link, and one for deadlines, around one `Scheduler`.

    It begins with the pool of the first decode worker. Whichever worker comes then, and however often, takes one way.
    """

    def __init__(self, context: WorkerContext, links: SchedulerLinks, export: PoolExport) -> None:
        self._context = context
        self._links = links
        self._workers = PoolHandshake(export)
        self._spans = SchedulerSpans(context.tracer)
        self._scheduler = Scheduler(self._limits(export), self._spans.stalled)
        self._has_reported = False

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
                    outputs = self._scheduler.abort(uids, now)
                    self._spans.ended_early("abort", start, outputs)
                    await self._send_outputs(outputs)
                case StatusQuery(query_id):
                    await self._links.tokenizer.send(self._status(query_id))
            await self._send_work()

    async def serve_decode(self) -> None:
        """Step results and new pools in; the next step, compression jobs and tokens out."""
        while True:
            message, start, now = await self._links.decode.receive(), tracing.now(), time.monotonic()
            if isinstance(message, PoolExport):
                outputs = self._scheduler.start_over(self._limits(message), now)
                await self._send_pool(self._workers.decode_started(message))
            else:
                outputs = self._scheduler.finish_step(message, now)
                self._spans.finished_step(start, message, outputs)
            await self._send_work()
            await self._send_outputs(outputs)

    async def serve_compression(self) -> None:
        """Finished jobs and hellos in; the pool, and what can begin now, out."""
        while True:
            message = await self._links.compression.receive()
            if isinstance(message, CompressionStarted):
                await self._send_pool(self._workers.compression_started())
                continue
            outputs = self._take_answer(message, time.monotonic())
            await self._send_work()
            await self._send_outputs(outputs)

    async def watch_deadlines(self) -> None:
        """Requests whose deadline passes while nothing else happens."""
        while True:
            await asyncio.sleep(_DEADLINE_CHECK_SECONDS)
            start = tracing.now()
            if outputs := self._scheduler.expire(time.monotonic()):
                self._spans.ended_early("expire", start, outputs)
                await self._send_work()
                await self._send_outputs(outputs)

    def _take_answer(self, message: PoolOpened | JobAnswer, now: float) -> list[TokenOutput]:
        if not isinstance(message, PoolOpened):
            return self._finish_job(message, now)
        if not self._workers.pool_opened():
            return []
        if not self._has_reported:
            report_ready(self._context, self._status(query_id=0))
            self._has_reported = True
        return self._scheduler.resend_jobs(message.unfinished, now)

    def _finish_job(self, answer: JobAnswer, now: float) -> list[TokenOutput]:
        if not self._workers.takes_answers:
            # It is not about the present pool, and the job is void.
            return []
        start = tracing.now()
        outputs = self._scheduler.finish_job(answer, now)
        self._spans.finished_job(start, answer, outputs)
        return outputs

    def _limits(self, export: PoolExport) -> SchedulerLimits:
        return SchedulerLimits.from_config(self._context.config, export.geometry, export.max_model_len)

    def _status(self, query_id: int) -> Status:
        return engine_status(self._scheduler, self._context.config, self._workers, query_id)

    async def _send_pool(self, message: OpenPool | None) -> None:
        if message is not None:
            await self._links.compression.send(message)

    async def _send_work(self) -> None:
        """Whatever can begin."""
        start = tracing.now()
        while self._workers.takes_steps and (step := self._scheduler.plan()) is not None:
            self._spans.planned(start, step, self._scheduler)
            if not await self._links.decode.send(step):
                self._workers.decode_gone()
            start = tracing.now()
        for job in self._scheduler.plan_jobs() if self._workers.takes_jobs else []:
            self._spans.began_job(start, job)
            if not await self._links.compression.send(job):
                self._workers.compression_gone()
            start = tracing.now()

    async def _send_outputs(self, outputs: list[TokenOutput]) -> None:
        if outputs:
            await self._links.tokenizer.send(TokenOutputs(outputs))


async def serve(context: WorkerContext, links: SchedulerLinks) -> None:
    """Wait for the first decode worker, then serve without end."""
    export = await links.decode.receive()
    while not isinstance(export, PoolExport):
        export = await links.decode.receive()
    process = SchedulerProcess(context, links, export)
    await asyncio.gather(
        process.serve_tokenizer(),
        process.serve_decode(),
        process.serve_compression(),
        process.watch_deadlines(),
    )


async def _run(context: WorkerContext) -> None:
    links = bind_scheduler_links(zmq.asyncio.Context(), context.runtime_dir, context.tracer)
    try:
        await run_until_stopped(context.lifeline_fd, serve(context, links))
    finally:
        links.close()


def main(context: WorkerContext) -> None:
    """Serve until the process is to stop."""
    uvloop.run(_run(context))


if __name__ == "__main__":
    run_worker("scheduler", main)
