"""The sockets between zipage's processes: their addresses, who binds them, and which union travels in each direction.

Every link is an `ipc://` socket inside the supervisor's runtime directory. The link between tokenizer and scheduler is
two PAIR sockets, the control link is PUSH/PULL. Clients use DEALER/ROUTER, and so do the workers that may be started
again, so that two of them are never mixed up. No queue has a limit, so nothing that was accepted is lost while both
ends live; no socket lingers when it is closed. The scheduler binds its three links, the tokenizer binds the client
link, the supervisor binds the control link; the other ends connect, in any order.

docs/protocol.md describes the messages themselves.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio

from zipage.engine_messages import (
    ChildMessage,
    CompressionCommand,
    CompressionStarted,
    CompressionWorkerMessage,
    DecodeCommand,
    DecodeWorkerMessage,
    PoolExport,
    SchedulerMessage,
    TokenizerMessage,
)
from zipage.errors import InvalidRequestError
from zipage.messages import ClientMessage, EngineMessage
from zipage.tracing import TRACING_OFF, Tracer, now
from zipage.wire import DECODE_ERRORS, Incoming, Outgoing, Wire

# How long a message to the supervisor may take to leave; a watchdog ends senders whose supervisor is gone before that.
_CONTROL_LINGER_MS = 10_000


class Stopped(Exception):  # noqa: N818 - an order to end, not an error
    """The supervisor has asked this process to stop, or is gone."""


def control_address(runtime_dir: Path) -> str:
    """Address of the PULL socket on which the supervisor hears from its children."""
    return _address(runtime_dir, "control")


def client_address(runtime_dir: Path) -> str:
    """Address of the ROUTER socket on which the tokenizer hears from clients."""
    return _address(runtime_dir, "clients")


class Link(Generic[Incoming, Outgoing]):
    """A worker's end of its link to the scheduler, for a process that waits in plain calls.

    Not thread-safe: one thread sends and receives.
    """

    def __init__(self, socket: zmq.Socket[bytes], wire: Wire[Incoming, Outgoing], lifeline_fd: int) -> None:
        self._socket = socket
        self._wire = wire
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(lifeline_fd, zmq.POLLIN)
        self._lifeline_fd = lifeline_fd

    def send(self, message: Outgoing) -> None:
        """Queue a message; returns at once."""
        self._socket.send(self._wire.encode(message))

    def receive(self) -> Incoming:
        """Wait for the next message.

        Raises:
            Stopped: this process is to end; messages that still wait are not delivered.
            EngineError: the frame is no message of this link.
        """
        if self._lifeline_fd in dict(self._poller.poll()):
            raise Stopped
        return self._wire.receive(self._socket.recv())

    def receive_waiting(self, timeout_ms: int | None) -> list[Incoming]:
        """All messages that have arrived; where there is none, wait for one, up to `timeout_ms` unless that is None.

        Raises as `receive` does.
        """
        if self._lifeline_fd in dict(self._poller.poll(timeout_ms)):
            raise Stopped
        messages = []
        while self._socket.poll(0):
            messages.append(self._wire.receive(self._socket.recv()))
        return messages

    def close(self) -> None:
        """Close the socket; messages that have not left are dropped."""
        self._socket.close()


class AsyncLink(Generic[Incoming, Outgoing]):
    """One end of a link between two processes, for a process that runs an event loop."""

    def __init__(self, socket: zmq.asyncio.Socket, wire: Wire[Incoming, Outgoing]) -> None:
        self._socket = socket
        self._wire = wire

    async def send(self, message: Outgoing) -> None:
        """Queue a message; waits only until the other end has connected for the first time."""
        await self._socket.send(self._wire.encode(message))

    async def receive(self) -> Incoming:
        """Wait for the next message.

        Raises:
            EngineError: the frame is no message of this link.
        """
        return self._wire.receive(await self._socket.recv())

    def close(self) -> None:
        """Close the socket; messages that have not left are dropped."""
        self._socket.close()


class WorkerLink(Generic[Incoming, Outgoing]):
    """The scheduler's ROUTER end of its link to a worker that may die and be started again.

    Every worker connects under an identity of its own, which the ROUTER gives it, and begins with a *hello*. Only the
    one whose hello came last is heard and spoken to.
    """

    def __init__(self, socket: zmq.asyncio.Socket, wire: Wire[Incoming, Outgoing], hello: type) -> None:
        # Without this a message to a worker that has gone vanishes without a word.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket = socket
        self._wire = wire
        self._hello = hello
        self._worker: bytes | None = None

    async def send(self, message: Outgoing) -> bool:
        """Queue a message without waiting; False where no worker is connected that it could go to.

        Until its end is noticed, messages to a worker that has died are lost.
        """
        if self._worker is None:
            return False
        return await _send_to(self._socket, self._worker, self._wire.encode(message))

    async def receive(self) -> Incoming:
        """Wait for the next message of the present worker, which may be the hello of the next one.

        Raises:
            EngineError: the frame is no message of this link.
        """
        while True:
            worker, frame = await self._socket.recv_multipart()
            start = now()
            message = self._wire.decode(frame)
            if isinstance(message, self._hello):
                if self._worker not in (None, worker):
                    self._wire.begin_anew()
                self._worker = worker
            if worker == self._worker:
                self._wire.received(message, frame, start)
                return message

    def close(self) -> None:
        """Close the socket; messages that have not left are dropped."""
        self._socket.close()


@dataclass(frozen=True)
class SchedulerLinks:
    """The scheduler's ends of its three links."""

    tokenizer: AsyncLink[TokenizerMessage, SchedulerMessage]
    decode: WorkerLink[DecodeWorkerMessage, DecodeCommand]
    compression: WorkerLink[CompressionWorkerMessage, CompressionCommand]

    def close(self) -> None:
        """Close all three."""
        for link in (self.tokenizer, self.decode, self.compression):
            link.close()


def bind_scheduler_links(
    context: zmq.asyncio.Context, runtime_dir: Path, tracer: Tracer = TRACING_OFF
) -> SchedulerLinks:
    """Bind the scheduler's ends of its links."""

    def bound(kind: int, name: str) -> zmq.asyncio.Socket:
        socket = _open(context.socket(kind))
        socket.bind(_address(runtime_dir, name))
        return socket

    decode, compression = bound(zmq.ROUTER, "decode"), bound(zmq.ROUTER, "compression")
    return SchedulerLinks(
        tokenizer=AsyncLink(bound(zmq.PAIR, "tokenizer"), Wire(TokenizerMessage, "tokenizer", tracer)),
        decode=WorkerLink(decode, Wire(DecodeWorkerMessage, "decode", tracer), PoolExport),
        compression=WorkerLink(compression, Wire(CompressionWorkerMessage, "compression", tracer), CompressionStarted),
    )


def connect_tokenizer_link(
    context: zmq.asyncio.Context, runtime_dir: Path, tracer: Tracer = TRACING_OFF
) -> AsyncLink[SchedulerMessage, TokenizerMessage]:
    """Connect the tokenizer to the scheduler."""
    socket = _open(context.socket(zmq.PAIR))
    socket.connect(_address(runtime_dir, "tokenizer"))
    return AsyncLink(socket, Wire(SchedulerMessage, "tokenizer", tracer))


def connect_decode_link(
    context: zmq.Context[zmq.Socket[bytes]], runtime_dir: Path, lifeline_fd: int, tracer: Tracer = TRACING_OFF
) -> Link[DecodeCommand, DecodeWorkerMessage]:
    """Connect the decode worker to the scheduler; `lifeline_fd` is its `WorkerContext`'s."""
    socket = _open(context.socket(zmq.DEALER))
    socket.connect(_address(runtime_dir, "decode"))
    return Link(socket, Wire(DecodeCommand, "decode", tracer), lifeline_fd)


def connect_compression_link(
    context: zmq.Context[zmq.Socket[bytes]], runtime_dir: Path, lifeline_fd: int, tracer: Tracer = TRACING_OFF
) -> Link[CompressionCommand, CompressionWorkerMessage]:
    """Connect the compression worker to the scheduler; `lifeline_fd` is its `WorkerContext`'s."""
    socket = _open(context.socket(zmq.DEALER))
    socket.connect(_address(runtime_dir, "compression"))
    return Link(socket, Wire(CompressionCommand, "compression", tracer), lifeline_fd)


@dataclass(frozen=True)
class UnreadableMessage:
    """What a client sent is no `ClientMessage`; nothing of it is carried out.

    Attributes:
        reason: one sentence for the client.
        field: the offending sampling field, where it is one.
        request_ids: ids of the requests in the message, where they can still be read; each deserves a `Refused`.
    """

    reason: str
    field: str | None
    request_ids: list[str]


class ClientRouter:
    """The tokenizer's ROUTER socket, which every client connects a DEALER to."""

    def __init__(self, context: zmq.asyncio.Context, runtime_dir: Path) -> None:
        self._socket = _open(context.socket(zmq.ROUTER))
        # Without this a message to a client that has gone vanishes without a word.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.bind(client_address(runtime_dir))
        self._encoder = msgspec.msgpack.Encoder()

    async def receive(self) -> tuple[bytes, ClientMessage | UnreadableMessage]:
        """Wait for the next message of any client; gives the client's identity and what it sent."""
        client, *frames = await self._socket.recv_multipart()
        if len(frames) != 1:
            return client, UnreadableMessage(f"a message must be one frame, not {len(frames)}", None, [])
        return client, decode_client_message(frames[0])

    async def send(self, client: bytes, message: EngineMessage) -> bool:
        """Queue a message for a client; False where that client has disconnected."""
        return await _send_to(self._socket, client, self._encoder.encode(message))

    def close(self) -> None:
        """Close the socket; messages that have not left are dropped."""
        self._socket.close()


class ControlReceiver:
    """The supervisor's end of the control link."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], runtime_dir: Path) -> None:
        self._socket = _open(context.socket(zmq.PULL))
        self._socket.bind(control_address(runtime_dir))
        self._wire: Wire[ChildMessage, ChildMessage] = Wire(ChildMessage, "control")

    def receive(self, timeout: float) -> ChildMessage | None:
        """Wait up to `timeout` seconds for the next message; None where none came.

        Raises:
            EngineError: the frame is no message of this link.
        """
        if not self._socket.poll(int(1000 * timeout)):
            return None
        return self._wire.decode(self._socket.recv())

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def send_to_supervisor(runtime_dir: Path, message: ChildMessage) -> None:
    """Send one message on the control link; returns once it has left this process."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.setsockopt(zmq.LINGER, _CONTROL_LINGER_MS)
        socket.connect(control_address(runtime_dir))
        socket.send(msgspec.msgpack.encode(message))


def decode_client_message(frame: bytes) -> ClientMessage | UnreadableMessage:
    """Decode what a client sent; never raises, since a client must not be able to end the engine."""
    try:
        message: ClientMessage = msgspec.msgpack.decode(frame, type=ClientMessage)
        return message
    except DECODE_ERRORS as error:
        field = error.field if isinstance(error, InvalidRequestError) else None
        return UnreadableMessage(str(error), field, _readable_request_ids(frame))


async def run_until_stopped(lifeline_fd: int, *coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines side by side until this process is to stop, then cancel them.

    `lifeline_fd` is the process's `WorkerContext`'s. Where a coroutine ends first, the others are cancelled, and what
    it raised is raised here.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    stop = asyncio.create_task(_until_readable(lifeline_fd))
    try:
        ended, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (stop, *tasks):
            task.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)
    for task in tasks:
        if task in ended:
            task.result()


async def _until_readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)


class _RequestId(msgspec.Struct):
    """The one field of a request that a refusal needs."""

    request_id: str


class _RequestIds(msgspec.Struct):
    """The shape of a `Submit`, whatever else is in it."""

    requests: list[_RequestId]


def _readable_request_ids(frame: bytes) -> list[str]:
    try:
        return [request.request_id for request in msgspec.msgpack.decode(frame, type=_RequestIds).requests]
    except DECODE_ERRORS:
        return []


def _address(runtime_dir: Path, name: str) -> str:
    return f"ipc://{runtime_dir}/{name}"


_Socket = TypeVar("_Socket", bound=zmq.Socket[Any])


def _open(socket: _Socket) -> _Socket:
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    # A connecting end may start before the binding one; it tries again this often.
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    return socket


async def _send_to(router: zmq.asyncio.Socket, peer: bytes, frame: bytes) -> bool:
    """Queue a frame on a ROUTER socket that reports unreachable peers; False where this one is."""
    try:
        await router.send_multipart([peer, frame])
    except zmq.ZMQError as error:
        if error.errno != zmq.EHOSTUNREACH:
            raise
        return False
    return True
