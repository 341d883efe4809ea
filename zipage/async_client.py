"""`AsyncClient`: the client of a running engine for asyncio. `zipage.client` describes both clients."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Self

import msgspec
import zmq
import zmq.asyncio

from zipage.client_link import CHECK_SECONDS, HEARTBEAT_SECONDS, client_closed, connect_dealer, silent_for, unreachable
from zipage.client_requests import (
    Conversation,
    PendingRequest,
    PendingRequests,
    Prompt,
    Sampling,
    in_order,
    make_request,
    make_requests,
    split_conversations,
    split_prompts,
)
from zipage.errors import EngineError, ZipageError
from zipage.messages import Abort, GenerationRequest, Output, Status, StatusQuery
from zipage.results import RequestOutput
from zipage.sampling_params import SamplingParams


class AsyncClient:
    """A client of the engine at `address` for one event loop; any number of tasks may share it.

    Nothing is sent before the first request. After EngineError every call raises it again: make a new client.
    """

    def __init__(self, address: str, *, timeout: float = 30.0, check: Callable[[], None] | None = None) -> None:
        """Connect to `address`; the arguments are those of `Client`.

        Raises:
            EngineError: the address is not one, or nobody listens there.
        """
        self.address = address
        self._timeout = timeout
        self._check = check
        self._pending = PendingRequests()
        self._arrivals: dict[str, asyncio.Event] = {}
        self._queries: dict[int, asyncio.Future[Status]] = {}
        self._last_query = 0
        self._heard = time.monotonic()
        self._failure: ZipageError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket = connect_dealer(self._context, address)

    async def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Sampling = None
    ) -> list[RequestOutput]:
        """As `Client.generate`; cancelling the task aborts what is unfinished."""
        return await self._run(*split_prompts(prompts), sampling_params)

    async def chat(
        self, messages: Conversation | Sequence[Conversation], sampling_params: Sampling = None
    ) -> list[RequestOutput]:
        """As `Client.chat`; cancelling the task aborts what is unfinished."""
        return await self._run(*split_conversations(messages), sampling_params)

    def stream(
        self, prompt: Prompt | Conversation, sampling_params: SamplingParams | None = None
    ) -> AsyncGenerator[Output, None]:
        """As `Client.stream`. `async for` does not close what it leaves early: wrap it in `contextlib.aclosing`."""
        request = make_request(self._pending.make_name(), prompt, sampling_params or SamplingParams(), stream=True)
        return self._stream(request)

    async def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Send requests in one message; `wait` gives their results. Raises as `Client.submit`."""
        frame = self._pending.submit(requests)
        for request in requests:
            self._arrivals[request.request_id] = asyncio.Event()
        if frame is not None:
            await self._send(frame)

    async def wait(self, request_id: str) -> RequestOutput:
        """Wait until a submitted request has finished, and forget it; if this task is cancelled, abort it.

        Raises:
            EngineError: the engine is gone or sent something that is not a message.
        """
        try:
            while not self._pending[request_id].finished:
                await self._arrival(request_id)
            return self._pending[request_id].result()
        finally:
            await self._abandon([request_id])

    async def abort(self, request_ids: Iterable[str]) -> None:
        """Ask the engine to end requests; they finish with what they have and finish reason `abort`."""
        await self._send(msgspec.msgpack.encode(Abort(list(request_ids))))

    async def status(self) -> Status:
        """Ask the engine what it holds.

        Raises:
            EngineError: the engine is gone or sent something that is not a message.
        """
        self._last_query += 1
        query_id = self._last_query
        self._queries[query_id] = asyncio.get_running_loop().create_future()
        try:
            await self._send(msgspec.msgpack.encode(StatusQuery(query_id)))
            return await self._queries[query_id]
        finally:
            del self._queries[query_id]

    async def close(self) -> None:
        """Disconnect; unfinished requests are aborted, and calls that wait raise EngineError. May be called again."""
        if self._socket.closed:
            return
        await self._send_abort(self._pending.names())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(client_closed())
        self._socket.close()
        self._context.term()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, prompts: Sequence[Any], alone: bool, sampling_params: Sampling) -> list[RequestOutput]:
        requests = make_requests(self._pending, prompts, sampling_params)
        names = [request.request_id for request in requests]
        try:
            if requests:
                await self.submit(requests)
            results = {name: await self.wait(name) for name in names}
        finally:
            await self._abandon(names)
        return in_order(requests, results, alone)

    async def _stream(self, request: GenerationRequest) -> AsyncGenerator[Output, None]:
        try:
            await self.submit([request])
            pending = self._pending[request.request_id]
            while (outputs := pending.take()) or not pending.finished:
                for output in outputs:
                    yield output
                if not outputs:
                    await self._arrival(request.request_id)
            if pending.error is not None:
                raise pending.error
        finally:
            await self._abandon([request.request_id])

    async def _arrival(self, request_id: str) -> None:
        """Wait for the next message of a request."""
        if self._failure is not None:
            raise self._failure
        arrived = self._arrivals[request_id]
        await arrived.wait()
        arrived.clear()
        if self._failure is not None:
            raise self._failure

    async def _abandon(self, request_ids: Sequence[str]) -> None:
        await self._send_abort(request_ids)
        for request_id in request_ids:
            self._pending.forget(request_id)
            self._arrivals.pop(request_id, None)

    async def _send_abort(self, request_ids: Sequence[str]) -> None:
        """End those of the requests that are unfinished; an engine that is gone need not hear it."""
        pending = [self._pending[name] for name in request_ids if name in self._pending]
        unfinished = [each.request_id for each in pending if not each.finished]
        if unfinished and self._failure is None:
            with contextlib.suppress(EngineError):
                await self.abort(unfinished)

    async def _send(self, frame: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._guard(self._read())),
                asyncio.create_task(self._guard(self._watch())),
            ]
        try:
            await self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            raise unreachable(self.address) from None

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ZipageError as error:
            self._fail(error)

    async def _read(self) -> None:
        while True:
            answer = self._pending.receive(await self._socket.recv_multipart())
            self._heard = time.monotonic()
            if isinstance(answer, PendingRequest):
                self._arrivals[answer.request_id].set()
            elif answer is not None:
                self._answer_query(answer)

    async def _watch(self) -> None:
        next_heartbeat = 0.0
        while True:
            await asyncio.sleep(min(CHECK_SECONDS, self._timeout / 4))
            now = time.monotonic()
            if self._check is not None:
                self._check()
            elif not self._arrivals and not self._queries:
                self._heard = now
            elif now - self._heard > self._timeout:
                raise silent_for(self.address, self._timeout)
            elif now >= next_heartbeat:
                next_heartbeat = now + min(HEARTBEAT_SECONDS, self._timeout / 4)
                await self._send(msgspec.msgpack.encode(StatusQuery()))

    def _answer_query(self, status: Status) -> None:
        query = self._queries.get(status.query_id)
        if query is not None and not query.done():
            query.set_result(status)

    def _fail(self, error: ZipageError) -> None:
        """Let every call that waits, and every later one, raise `error`."""
        self._failure = self._failure or error
        for arrived in self._arrivals.values():
            arrived.set()
        for query in self._queries.values():
            if not query.done():
                query.set_exception(error)
