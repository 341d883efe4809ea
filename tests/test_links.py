"""Messages arrive whole, in order and typed on every link; what is malformed raises inside and is answered outside."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop
import zmq
import zmq.asyncio
from small_pools import small_geometry

from zipage import links
from zipage.engine_messages import (
    AbortTokens,
    CompressionDone,
    CompressionJob,
    CompressionStarted,
    Failed,
    JobFailed,
    OpenPool,
    PoolExport,
    PoolOpened,
    Ready,
    Step,
    StepResult,
    SwapDone,
    SwapIn,
    SwapOut,
    TokenOutputs,
)
from zipage.errors import EngineError

SECONDS = 30.0
EXPORT = PoolExport(
    geometry=small_geometry(),
    device="cpu",
    max_model_len=128,
    vocab_size=1000,
)


@pytest.fixture
def lifeline() -> Iterator[tuple[int, int]]:
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    os.close(read_fd)
    os.close(write_fd)


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    with zmq.Context() as sockets:
        yield sockets


def run(coroutine) -> None:
    uvloop.run(asyncio.wait_for(coroutine, SECONDS))


def step(step_id: int) -> Step:
    return Step(step_id, released_rows=[], admissions=[], table_updates=[], recording_updates=[], work=[])


def test_scheduler_and_sync_workers(runtime_dir: Path, context: zmq.Context, lifeline: tuple[int, int]) -> None:
    # The workers connect, and send, before the scheduler binds.
    decode = links.connect_decode_link(context, runtime_dir, lifeline[0])
    compression = links.connect_compression_link(context, runtime_dir, lifeline[0])
    decode.send(EXPORT)
    decode.send(StepResult(1, [2], []))
    compression.send(CompressionStarted())
    compression.send(PoolOpened([7]))
    compression.send(CompressionDone(uid=3, num_pinned=5))

    async def scheduler() -> None:
        with zmq.asyncio.Context() as sockets:
            ends = links.bind_scheduler_links(sockets, runtime_dir)
            assert await ends.decode.receive() == EXPORT
            assert await ends.decode.receive() == StepResult(1, [2], [])
            assert await ends.compression.receive() == CompressionStarted()
            assert await ends.compression.receive() == PoolOpened([7])
            assert await ends.compression.receive() == CompressionDone(uid=3, num_pinned=5)
            assert await ends.decode.send(step(4))
            assert await asyncio.to_thread(decode.receive) == step(4)
            ends.close()

    run(scheduler())
    decode.close()
    compression.close()


def test_jobs_and_their_answers(runtime_dir: Path, context: zmq.Context, lifeline: tuple[int, int]) -> None:
    compression = links.connect_compression_link(context, runtime_dir, lifeline[0])
    jobs = [
        OpenPool(EXPORT),
        CompressionJob(1, [4, 5, 6], [7, 8], 48, 0, 0, 0, 2, 32),
        SwapOut(2, [4, 5], query_buffer=-1, host_blocks=[0, 1], host_slot=0),
        SwapIn(2, [6, 7], query_buffer=3, host_blocks=[0, 1], host_slot=0),
    ]
    answers = [PoolOpened([]), CompressionDone(1, 0), SwapDone(2), JobFailed(2, "out of memory")]

    async def scheduler() -> None:
        with zmq.asyncio.Context() as sockets:
            ends = links.bind_scheduler_links(sockets, runtime_dir)
            compression.send(CompressionStarted())
            assert await ends.compression.receive() == CompressionStarted()
            for job, answer in zip(jobs, answers, strict=True):
                assert await ends.compression.send(job)
                assert await asyncio.to_thread(compression.receive) == job
                compression.send(answer)
                assert await ends.compression.receive() == answer
            ends.close()

    run(scheduler())
    compression.close()


def test_only_the_last_of_two_workers_is_heard_and_spoken_to(
    runtime_dir: Path, context: zmq.Context, lifeline: tuple[int, int]
) -> None:
    async def scheduler() -> None:
        with zmq.asyncio.Context() as sockets:
            ends = links.bind_scheduler_links(sockets, runtime_dir)
            first = links.connect_compression_link(context, runtime_dir, lifeline[0])
            first.send(CompressionStarted())
            assert await ends.compression.receive() == CompressionStarted()
            second = links.connect_compression_link(context, runtime_dir, lifeline[0])
            # What has not said hello is not heard, whoever it is.
            second.send(SwapDone(1))
            first.send(SwapDone(2))
            assert await ends.compression.receive() == SwapDone(2)
            second.send(CompressionStarted())
            assert await ends.compression.receive() == CompressionStarted()
            # The first one is still connected.
            first.send(SwapDone(3))
            first.send(SwapDone(4))
            assert await ends.compression.send(OpenPool(EXPORT))
            assert await asyncio.to_thread(second.receive) == OpenPool(EXPORT)
            second.send(PoolOpened([]))
            assert await ends.compression.receive() == PoolOpened([])
            for worker in (first, second):
                worker.close()
            ends.close()

    run(scheduler())


def test_a_worker_that_has_gone_cannot_be_sent_to(
    runtime_dir: Path, context: zmq.Context, lifeline: tuple[int, int]
) -> None:
    async def scheduler() -> None:
        with zmq.asyncio.Context() as sockets:
            ends = links.bind_scheduler_links(sockets, runtime_dir)
            assert not await ends.decode.send(step(0))
            first = links.connect_decode_link(context, runtime_dir, lifeline[0])
            first.send(EXPORT)
            await ends.decode.receive()
            first.close()
            # Until the disconnection is noticed, messages go to where the worker was.
            while await ends.decode.send(step(1)):
                await asyncio.sleep(0.01)
            second = links.connect_decode_link(context, runtime_dir, lifeline[0])
            second.send(EXPORT)
            assert await ends.decode.receive() == EXPORT
            assert await ends.decode.send(step(2))
            assert await asyncio.to_thread(second.receive) == step(2)
            second.close()
            ends.close()

    run(scheduler())


def test_tokenizer_and_scheduler(runtime_dir: Path) -> None:
    async def both() -> None:
        with zmq.asyncio.Context() as sockets:
            tokenizer = links.connect_tokenizer_link(sockets, runtime_dir)
            await tokenizer.send(AbortTokens([1, 2]))
            ends = links.bind_scheduler_links(sockets, runtime_dir)
            assert await ends.tokenizer.receive() == AbortTokens([1, 2])
            await ends.tokenizer.send(TokenOutputs([]))
            assert await tokenizer.receive() == TokenOutputs([])
            tokenizer.close()
            ends.close()

    run(both())


def test_no_message_is_lost_however_long_the_receiver_is_busy(
    runtime_dir: Path, context: zmq.Context, lifeline: tuple[int, int]
) -> None:
    count = 20_000
    decode = links.connect_decode_link(context, runtime_dir, lifeline[0])

    async def scheduler() -> None:
        with zmq.asyncio.Context() as sockets:
            ends = links.bind_scheduler_links(sockets, runtime_dir)
            decode.send(EXPORT)
            await ends.decode.receive()
            for step_id in range(count):
                assert await ends.decode.send(step(step_id))
            for step_id in range(count):
                assert decode.receive() == step(step_id)
                decode.send(StepResult(step_id, [], []))
            for step_id in range(count):
                assert await ends.decode.receive() == StepResult(step_id, [], [])
            ends.close()

    run(scheduler())
    decode.close()


def test_receive_raises_once_the_process_is_to_stop(
    runtime_dir: Path, context: zmq.Context, lifeline: tuple[int, int]
) -> None:
    compression = links.connect_compression_link(context, runtime_dir, lifeline[0])
    os.write(lifeline[1], b"\0")
    for _ in range(2):
        with pytest.raises(links.Stopped):
            compression.receive()
    compression.close()


def test_everything_that_waits_is_received_at_once(
    runtime_dir: Path, context: zmq.Context, lifeline: tuple[int, int]
) -> None:
    decode = links.connect_decode_link(context, runtime_dir, lifeline[0])
    assert decode.receive_waiting(0) == []
    assert decode.receive_waiting(1) == []
    with context.socket(zmq.DEALER) as scheduler:
        scheduler.bind(f"ipc://{runtime_dir}/decode")
        received = []
        for step_id in range(3):
            scheduler.send(msgspec.msgpack.encode(step(step_id)))
        while len(received) < 3:
            waiting = decode.receive_waiting(None)
            assert waiting
            received += waiting
        assert received == [step(0), step(1), step(2)]
        assert decode.receive_waiting(0) == []
        os.write(lifeline[1], b"\0")
        with pytest.raises(links.Stopped):
            decode.receive_waiting(None)
    decode.close()


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x81\xa4type\xa2\xff\xfe", msgspec.msgpack.encode({"type": "PoolOpened"}), b"\x91" * 100_000],
)
def test_malformed_frame_on_an_internal_link(
    frame: bytes, runtime_dir: Path, context: zmq.Context, lifeline: tuple[int, int]
) -> None:
    decode = links.connect_decode_link(context, runtime_dir, lifeline[0])
    with context.socket(zmq.ROUTER) as scheduler:
        scheduler.bind(f"ipc://{runtime_dir}/decode")
        decode.send(EXPORT)
        worker, _ = scheduler.recv_multipart()
        scheduler.send_multipart([worker, frame])
        with pytest.raises(EngineError, match="malformed message on the decode link: "):
            decode.receive()
    decode.close()


def test_malformed_frame_on_an_event_loops_link(runtime_dir: Path, context: zmq.Context) -> None:
    async def scheduler() -> None:
        with zmq.asyncio.Context() as sockets, context.socket(zmq.DEALER) as worker:
            worker.connect(f"ipc://{runtime_dir}/compression")
            ends = links.bind_scheduler_links(sockets, runtime_dir)
            worker.send(b"\xc1")
            with pytest.raises(EngineError, match="malformed message on the compression link: "):
                await ends.compression.receive()
            ends.close()

    run(scheduler())


def test_control_link(runtime_dir: Path, context: zmq.Context) -> None:
    control = links.ControlReceiver(context, runtime_dir)
    assert control.receive(0) is None
    links.send_to_supervisor(runtime_dir, Ready("decode", 7))
    links.send_to_supervisor(runtime_dir, Failed("scheduler", 8, "why"))
    messages = [control.receive(SECONDS), control.receive(SECONDS)]
    assert Ready("decode", 7) in messages
    assert Failed("scheduler", 8, "why") in messages
    control.close()


def test_run_until_stopped_cancels_the_coroutines(lifeline: tuple[int, int]) -> None:
    cancelled: list[int] = []

    async def endless(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(number)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(os.write, lifeline[1], b"\0")
        await links.run_until_stopped(lifeline[0], endless(1), endless(2))

    run(main())
    assert sorted(cancelled) == [1, 2]


def test_run_until_stopped_raises_what_a_coroutine_raised(lifeline: tuple[int, int]) -> None:
    cancelled: list[bool] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async def broken() -> None:
        await asyncio.sleep(0)
        raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        run(links.run_until_stopped(lifeline[0], endless(), broken()))
    assert cancelled == [True]
