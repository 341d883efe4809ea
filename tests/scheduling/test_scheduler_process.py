"""The scheduler process between workers that are played here, over real sockets."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import uvloop
import zmq
import zmq.asyncio
from process_helpers import short_temporary_directory
from small_pools import small_geometry

from zipage import links
from zipage.config import EngineConfig
from zipage.engine_messages import (
    CompressionCommand,
    CompressionDone,
    CompressionJob,
    CompressionStarted,
    OpenPool,
    PoolExport,
    PoolOpened,
    Ready,
    SampledToken,
    SchedulerMessage,
    Step,
    StepResult,
    SubmitTokens,
    TokenOutputs,
    TokenRequest,
)
from zipage.messages import Message, Status, StatusQuery
from zipage.sampling_params import SamplingParams
from zipage.tracing import TRACING_OFF
from zipage.workers.process import WorkerContext
from zipage.workers.scheduler import serve

SECONDS = 60.0


def make_export(num_blocks: int) -> PoolExport:
    geometry = small_geometry(num_blocks=num_blocks, num_query_slots=2, num_query_buffers=4, window=16)
    return PoolExport(geometry=geometry, device="cpu", max_model_len=1000, vocab_size=100)


@dataclass
class Worker:
    """One worker's socket."""

    socket: zmq.asyncio.Socket
    incoming: Any

    async def send(self, message: Message) -> None:
        await self.socket.send(msgspec.msgpack.encode(message))

    async def receive(self) -> Any:
        return msgspec.msgpack.decode(await self.socket.recv(), type=self.incoming)

    async def answer(self, step: Step) -> None:
        """Sample token 7 in every row."""
        rows = [work.row for work in step.work]
        await self.send(StepResult(step.step_id, rows, [SampledToken(7)] * len(rows)))


@dataclass
class Peers:
    """Everyone the scheduler talks to."""

    sockets: zmq.asyncio.Context
    runtime_dir: Path
    control: links.ControlReceiver
    tokenizer: links.AsyncLink[SchedulerMessage, Any]

    def connect(self, name: str) -> Worker:
        """A worker's next incarnation."""
        socket = self.sockets.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{self.runtime_dir}/{name}")
        return Worker(socket, Step if name == "decode" else CompressionCommand)

    async def start(self) -> tuple[Worker, Worker]:
        """Both workers' first incarnations."""
        decode, compression = self.connect("decode"), self.connect("compression")
        await compression.send(CompressionStarted())
        await decode.send(make_export(20))
        assert await compression.receive() == OpenPool(make_export(20))
        await compression.send(PoolOpened([]))
        ready = await asyncio.to_thread(self.control.receive, SECONDS)
        assert isinstance(ready, Ready)
        assert ready.status.blocks_total == 20
        return decode, compression

    async def status(self) -> Status:
        """The answer to a query, behind whatever else has been sent."""
        await self.tokenizer.send(StatusQuery(3))
        while not isinstance(message := await self.tokenizer.receive(), Status):
            pass
        return message

    async def submit(self, uid: int, prompt: int) -> None:
        await self.tokenizer.send(SubmitTokens([TokenRequest(uid, [5] * prompt, SamplingParams(seed=uid), (2,))]))

    async def outputs(self) -> list[tuple[int, int]]:
        """The tokens of one step."""
        message = await self.tokenizer.receive()
        assert isinstance(message, TokenOutputs)
        return [(output.uid, output.token.token_id) for output in message.outputs]


@asynccontextmanager
async def scheduler_process() -> AsyncIterator[Peers]:
    read_fd, write_fd = os.pipe()
    with short_temporary_directory() as runtime_dir, zmq.asyncio.Context() as sockets, zmq.Context() as plain:
        config = EngineConfig(model="m", kv_budget=48, block_size=16, max_num_seqs=4, plan_ahead=False)
        context = WorkerContext("scheduler", runtime_dir, config, read_fd, None, None, None, TRACING_OFF)
        control = links.ControlReceiver(plain, runtime_dir)
        ends = links.bind_scheduler_links(sockets, runtime_dir)
        tokenizer = links.connect_tokenizer_link(sockets, runtime_dir)
        task = asyncio.create_task(serve(context, ends))
        try:
            yield Peers(sockets, runtime_dir, control, tokenizer)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            control.close()
            sockets.destroy(linger=0)
    os.close(read_fd)
    os.close(write_fd)


def run(coroutine: Any) -> None:
    uvloop.run(asyncio.wait_for(coroutine, SECONDS))


def test_a_new_decode_worker_takes_over_once_its_pool_is_open() -> None:
    async def play() -> None:
        async with scheduler_process() as peers:
            decode, compression = await peers.start()
            await peers.submit(0, 4)
            await decode.answer(await decode.receive())
            assert await peers.outputs() == [(0, 7)]
            assert len((await decode.receive()).work) == 1
            # It dies with that step; the compression worker is still there, and opens the new pool instead.
            second = peers.connect("decode")
            await second.send(make_export(10))
            assert await compression.receive() == OpenPool(make_export(10))
            await decode.send(StepResult(1, [0], [SampledToken(9)]))
            assert (await peers.status()).waiting == 1
            await compression.send(PoolOpened([]))
            step = await second.receive()
            assert [admission.token_ids for admission in step.admissions] == [[5, 5, 5, 5, 7]]
            await second.answer(step)
            assert await peers.outputs() == [(0, 7)]
            status = await peers.status()
            assert (status.worker_restarts, status.blocks_total, status.preemptions) == (1, 10, 1)
            assert status.integrity_errors == []

    run(play())


def test_a_new_compression_worker_gets_the_jobs_of_the_old_one() -> None:
    async def play() -> None:
        async with scheduler_process() as peers:
            decode, compression = await peers.start()
            await peers.submit(0, 48)
            await decode.answer(await decode.receive())
            assert await peers.outputs() == [(0, 7)]
            job = await compression.receive()
            assert isinstance(job, CompressionJob)
            second = peers.connect("compression")
            await second.send(CompressionStarted())
            assert await second.receive() == OpenPool(make_export(20))
            # An answer of the old one counts no more.
            await compression.send(CompressionDone(0, 0))
            await second.send(PoolOpened([]))
            assert await second.receive() == job
            assert (await peers.status()).compressions == 0
            await second.send(CompressionDone(0, 0))
            while not (step := await decode.receive()).table_updates:
                await decode.answer(step)
            assert step.table_updates[0].block_table[:2] == job.target_blocks
            status = await peers.status()
            assert (status.worker_restarts, status.compressions, status.failed_jobs) == (1, 1, 0)

    run(play())


def test_workers_that_are_known_to_have_gone_are_sent_nothing() -> None:
    async def play() -> None:
        async with scheduler_process() as peers:
            decode, compression = await peers.start()
            decode.socket.close()
            compression.socket.close()
            # Enough that something cannot be sent; the requests wait.
            for uid in range(3):
                await peers.submit(uid, 4)
            assert (await peers.status()).integrity_errors == []
            second = peers.connect("compression")
            await second.send(CompressionStarted())
            third = peers.connect("decode")
            await third.send(make_export(12))
            while (message := await second.receive()) != OpenPool(make_export(12)):
                # Where the end of the decode worker was not noticed.
                assert message == OpenPool(make_export(20))
                await second.send(PoolOpened([]))
            await second.send(PoolOpened([]))
            step = await third.receive()
            # As many as there are query slots: the third cannot be expected to get one in time.
            assert len(step.admissions) == 2
            assert (await peers.status()).worker_restarts == 2

    run(play())
