"""The scheduler process: passes messages between the `Scheduler` and the other workers, and never lets a step wait."""

import asyncio
import time

import uvloop
import zmq.asyncio

from zipage.links import SchedulerLinks, bind_scheduler_links, run_until_stopped
from zipage.messages import (
    AbortTokens,
    CompressionStarted,
    JobAnswer,
    OpenPool,
    PoolExport,
    PoolOpened,
    Status,
    StatusQuery,
    SubmitTokens,
    TokenOutput,
    TokenOutputs,
)
from zipage.scheduling.handshake import PoolHandshake
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.scheduler import Scheduler
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
        self._scheduler = Scheduler(self._limits(export))
        self._has_reported = False

    async def serve_tokenizer(self) -> None:
        """Requests, aborts and status queries in; refusals, abort answers and status out."""
        while True:
            message = await self._links.tokenizer.receive()
            now = time.monotonic()
            match message:
                case SubmitTokens(requests):
                    for refusal in self._scheduler.add(requests, now):
                        await self._links.tokenizer.send(refusal)
                case AbortTokens(uids):
                    await self._send_outputs(self._scheduler.abort(uids, now))
                case StatusQuery(query_id):
                    await self._links.tokenizer.send(self._status(query_id))
            await self._send_work()

    async def serve_decode(self) -> None:
        """Step results and new pools in; the next step, compression jobs and tokens out."""
        while True:
            message, now = await self._links.decode.receive(), time.monotonic()
            if isinstance(message, PoolExport):
                outputs = self._scheduler.start_over(self._limits(message), now)
                await self._send_pool(self._workers.decode_started(message))
            else:
                outputs = self._scheduler.finish_step(message, now)
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
            if outputs := self._scheduler.expire(time.monotonic()):
                await self._send_work()
                await self._send_outputs(outputs)

    def _take_answer(self, message: PoolOpened | JobAnswer, now: float) -> list[TokenOutput]:
        if not isinstance(message, PoolOpened):
            # Other answers are about jobs that are void.
            return self._scheduler.finish_job(message, now) if self._workers.takes_answers else []
        if not self._workers.pool_opened():
            return []
        if not self._has_reported:
            report_ready(self._context, self._status(query_id=0))
            self._has_reported = True
        return self._scheduler.resend_jobs(message.unfinished, now)

    def _limits(self, export: PoolExport) -> SchedulerLimits:
        return SchedulerLimits.from_config(self._context.config, export.geometry, export.max_model_len)

    def _status(self, query_id: int) -> Status:
        return engine_status(self._scheduler, self._context.config, self._workers, query_id)

    async def _send_pool(self, message: OpenPool | None) -> None:
        if message is not None:
            await self._links.compression.send(message)

    async def _send_work(self) -> None:
        """Whatever can begin."""
        while self._workers.takes_steps and (step := self._scheduler.plan()) is not None:
            if not await self._links.decode.send(step):
                self._workers.decode_gone()
        for job in self._scheduler.plan_jobs() if self._workers.takes_jobs else []:
            if not await self._links.compression.send(job):
                self._workers.compression_gone()

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
