"""Clients of a running engine: `Client` for ordinary code, `AsyncClient` for asyncio.

docs/protocol.md has the messages. Both clients give every prompt of one `generate` or `chat` call to the engine in one
message, so that what is computed together does not depend on timing. An engine that goes away never leaves them
waiting: where a `check` is given it is called every 0.2 s of waiting and raises when the engine has ended; without one
the engine is asked for its status every second, and a silence of `timeout` seconds raises EngineError.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import Any, Self

import msgspec
import zmq

from zipage.async_client import AsyncClient
from zipage.client_link import CHECK_SECONDS, HEARTBEAT_SECONDS, client_closed, connect_dealer, silent_for, unreachable
from zipage.client_requests import (
    Conversation,
    Intake,
    OnResult,
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
from zipage.errors import InvalidRequestError
from zipage.messages import Abort, GenerationRequest, Output, Status, StatusQuery
from zipage.results import RequestOutput
from zipage.sampling_params import SamplingParams

__all__ = ["AsyncClient", "Client"]

# A supervisor learns of a dead process a moment after its sockets close; wait so long for its better explanation.
_EXPLANATION_SECONDS = 2.0


class Client:
    """A client of the engine at `address`. Not thread-safe: give every thread a client of its own.

    Nothing is sent before the first request. A client does not reconnect: after EngineError make a new one.
    """

    def __init__(self, address: str, *, timeout: float = 30.0, check: Callable[[], None] | None = None) -> None:
        """Connect to `address` (`ipc://...`).

        Args:
            address: what the engine printed or `LLM.address` says.
            timeout: seconds of silence after which an engine counts as gone; unused where `check` is given.
            check: called while waiting; raises EngineError where the engine has ended.

        Raises:
            EngineError: the address is not one, or nobody listens there.
        """
        self.address = address
        self._timeout = timeout
        self._check = check
        self._pending = PendingRequests()
        self._finished: dict[str, None] = {}
        self._queries = 0
        self._next_heartbeat = 0.0
        self._heartbeat_seconds = None if check else min(HEARTBEAT_SECONDS, timeout / 4)
        self._on_status: Callable[[Status], None] | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect_dealer(self._context, address)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Sampling = None,
        *,
        on_result: OnResult | None = None,
    ) -> list[RequestOutput]:
        """Continue one prompt or a list of prompts; each is text or a list of token ids.

        `sampling_params` is one for all or one for each. Results are in the order of the prompts. In a list, a prompt
        that the engine refuses gives a result with `error` set and the others go on; a prompt passed by itself raises.
        Leaving early, for example by Ctrl-C, aborts what is unfinished. `on_result` is called with each
        result as it comes in.

        Raises:
            InvalidRequestError: an argument is of a wrong type, or the only prompt was refused.
            EngineError: the engine is gone or sent something that is not a message.
        """
        return self._run(*split_prompts(prompts), sampling_params, on_result)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Sampling = None,
        *,
        on_result: OnResult | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation (a list of messages with `role` and `content`) or a list of them, like `generate`."""
        return self._run(*split_conversations(messages), sampling_params, on_result)

    def stream(
        self, prompt: Prompt | Conversation, sampling_params: SamplingParams | None = None
    ) -> Generator[Output, None, None]:
        """Yield the text of one prompt or conversation piece by piece; `Output.index` tells completions apart.

        The request is sent when iteration starts; closing the iterator early aborts it.

        Raises:
            InvalidRequestError: the prompt is of a wrong type (at once) or was refused (at the first piece).
            EngineError: as for `generate`.
        """
        request = make_request(self._pending.make_name(), prompt, sampling_params or SamplingParams(), stream=True)
        return self._stream(request)

    def completed(
        self, requests: Iterable[GenerationRequest], window: int | None = None
    ) -> Generator[RequestOutput, None, None]:
        """Yield results as requests finish; at most `window` completions (all, by default) are in the engine at a time.

        Requests are taken from the iterable as places fall free; one with more completions than that goes in alone.
        Closing the iterator early aborts what is unfinished.

        Raises:
            InvalidRequestError: a request id is the name of an unfinished request.
            EngineError: as for `generate`.
        """
        intake = Intake(requests, window)
        unfinished: set[str] = set()
        try:
            while True:
                batch = intake.take()
                if batch:
                    self.submit(batch)
                    unfinished.update(request.request_id for request in batch)
                if not unfinished:
                    return
                result = self.wait(unfinished)
                unfinished.discard(result.request_id)
                intake.note_end(result.request_id)
                yield result
        finally:
            self._abandon(unfinished)

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Send requests in one message; `wait` gives their results.

        Raises:
            InvalidRequestError: a request id is the name of an unfinished request.
            EngineError: the engine is gone.
        """
        frame = self._pending.submit(requests)
        for request in requests:
            self._note_end(self._pending[request.request_id])
        if frame is not None:
            self._send(frame)

    def wait(self, request_ids: Collection[str]) -> RequestOutput:
        """Wait until one of these submitted requests has finished, and forget it.

        Raises:
            InvalidRequestError: none of them was submitted.
            EngineError: as for `generate`.
        """
        while True:
            done = next((name for name in self._finished if name in request_ids), None)
            if done is not None:
                result = self._pending[done].result()
                self._forget(done)
                return result
            if not any(name in self._pending for name in request_ids):
                raise InvalidRequestError("wait needs the id of an unfinished request", "request_id")
            self._receive()

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ask the engine to end requests; they finish with what they have and finish reason `abort`."""
        self._send(msgspec.msgpack.encode(Abort(list(request_ids))))

    def status(self) -> Status:
        """Ask the engine what it holds.

        Raises:
            EngineError: as for `generate`.
        """
        self._queries += 1
        self._send(msgspec.msgpack.encode(StatusQuery(self._queries)))
        while True:
            status = self._receive()
            if status is not None and status.query_id == self._queries:
                return status

    @contextlib.contextmanager
    def watching_status(self, on_status: Callable[[Status], None], seconds: float) -> Iterator[None]:
        """Inside this context, call `on_status` about every `seconds` while this client waits."""
        before = self._on_status, self._heartbeat_seconds
        self._on_status, self._heartbeat_seconds = on_status, seconds
        try:
            yield
        finally:
            self._on_status, self._heartbeat_seconds = before

    def close(self) -> None:
        """Disconnect; unfinished requests are aborted. May be called again."""
        if self._socket.closed:
            return
        try:
            self._abandon(self._pending.names())
        finally:
            self._socket.close()
            self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self, prompts: Sequence[Any], alone: bool, sampling_params: Sampling, on_result: OnResult | None
    ) -> list[RequestOutput]:
        requests = make_requests(self._pending, prompts, sampling_params)
        results = {}
        for result in self.completed(requests):
            results[result.request_id] = result
            if on_result is not None:
                on_result(result)
        return in_order(requests, results, alone)

    def _stream(self, request: GenerationRequest) -> Generator[Output, None, None]:
        self.submit([request])
        pending = self._pending[request.request_id]
        try:
            # Pieces may also arrive while the caller uses this client in between, so look for them before the end.
            while (outputs := pending.take()) or not pending.finished:
                yield from outputs
                if not outputs:
                    self._receive()
            if pending.error is not None:
                raise pending.error
        finally:
            self._abandon([request.request_id])

    def _abandon(self, request_ids: Iterable[str]) -> None:
        unfinished = []
        for request_id in list(request_ids):
            if request_id in self._pending and not self._pending[request_id].finished:
                unfinished.append(request_id)
            self._forget(request_id)
        if unfinished and not self._socket.closed:
            with contextlib.suppress(zmq.ZMQError):  # an engine that is gone need not hear it
                self._socket.send(msgspec.msgpack.encode(Abort(unfinished)), zmq.NOBLOCK)

    def _forget(self, request_id: str) -> None:
        self._pending.forget(request_id)
        self._finished.pop(request_id, None)

    def _note_end(self, pending: PendingRequest) -> None:
        if pending.finished:
            self._finished[pending.request_id] = None

    def _send(self, frame: bytes) -> None:
        if self._socket.closed:
            raise client_closed()
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._explain_silence()
            raise unreachable(self.address) from None

    def _receive(self) -> Status | None:
        """Wait for one message and keep it where it belongs; a status is returned."""
        if self._socket.closed:
            raise client_closed()
        deadline = time.monotonic() + self._timeout
        patience = min(CHECK_SECONDS, self._heartbeat_seconds or CHECK_SECONDS)
        while True:
            self._send_heartbeat()
            if self._socket.poll(int(1000 * patience)):
                break
            if self._check is not None:
                self._check()
            elif time.monotonic() > deadline:
                raise silent_for(self.address, self._timeout)
        answer = self._pending.receive(self._socket.recv_multipart())
        if isinstance(answer, PendingRequest):
            self._note_end(answer)
            return None
        if answer is not None and self._on_status is not None:
            self._on_status(answer)
        return answer

    def _send_heartbeat(self) -> None:
        now = time.monotonic()
        if self._heartbeat_seconds is None or now < self._next_heartbeat:
            return
        self._next_heartbeat = now + self._heartbeat_seconds
        self._send(msgspec.msgpack.encode(StatusQuery()))

    def _explain_silence(self) -> None:
        deadline = time.monotonic() + _EXPLANATION_SECONDS
        while self._check is not None and time.monotonic() < deadline:
            self._check()
            time.sleep(CHECK_SECONDS / 4)
