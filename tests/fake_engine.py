"""An engine without a model: it answers clients over a real socket as its script says, from a thread."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec
import zmq
from process_helpers import wait_until

from zipage.config import EngineConfig
from zipage.errors import EngineError
from zipage.messages import (
    Abort,
    ClientMessage,
    GenerationRequest,
    Output,
    PositionLogprobs,
    Refused,
    RequestMetrics,
    Status,
    StatusQuery,
    Submit,
    TokenLogprob,
)

QUEUE_FULL = "the engine is full: 4 completions wait; max_waiting lets 0 to 4 do so"

Answer = Output | Refused | Status | bytes
Script = Callable[[GenerationRequest], list[Answer]]


def fake_status(query_id: int = 0, **changes: object) -> Status:
    """A status of a pool of 100 blocks."""
    fields = dict.fromkeys(Status.__struct_fields__, 0)
    fields |= {"model": "fake", "max_model_len": 16384, "block_size": 16, "blocks_total": 100, "blocks_used": 25}
    fields |= {"blocks_peak": 40, "integrity_errors": [], "query_id": query_id}
    known = {name: value for name, value in fields.items() if name in Status.__struct_fields__}
    return Status(**(known | changes))


def metrics_of(tokens: int) -> RequestMetrics:
    """First token after 0.5 s, the others within 1 s, one compression."""
    return RequestMetrics(
        arrived=1.0,
        first_token=1.5,
        finished=2.5,
        prompt_tokens=tokens,
        output_tokens=tokens,
        compressions=1,
        peak_blocks=2,
        preemptions=0,
        swaps=0,
        stalled=0.0,
        shadow_stalled=0.0,
    )


def prompt_text(request: GenerationRequest) -> str:
    """The text of a prompt, of its token ids, or of all its messages."""
    if request.prompt is not None:
        return request.prompt
    if request.prompt_token_ids is not None:
        return " ".join(map(str, request.prompt_token_ids))
    return " ".join(f"{message['role']}:{message['content']}" for message in request.messages or [])


def answer_with(request: GenerationRequest, pieces: list[str], finish_reason: str = "stop") -> list[Answer]:
    """Every completion is these pieces; one piece where the request does not stream."""
    logprobs = None
    if request.sampling.logprobs is not None:
        logprobs = [PositionLogprobs(TokenLogprob(7, "x", -0.5), [TokenLogprob(7, "x", -0.5)])]
    parts = pieces if request.stream else ["".join(pieces)]
    answers: list[Answer] = []
    for place, part in enumerate(parts):
        last = {"finish_reason": finish_reason, "metrics": metrics_of(len(pieces))} if place == len(parts) - 1 else {}
        answers += [
            Output(request.request_id, index, part, [place], logprobs, **last) for index in range(request.sampling.n)
        ]
    return answers


def echo(request: GenerationRequest) -> list[Answer]:
    """Answer with the prompt's words in capitals, or as the first word of the last message says.

    That is refuse, full, hang (until aborted), or garbage; with abort, deadline or error the answer ends so.
    """
    text = prompt_text(request)
    last = request.messages[-1]["content"] if request.messages else text
    first = last.split(" ")[0]
    if first == "refuse":
        return [Refused(request.request_id, "prompt must be shorter", "prompt")]
    if first == "full":
        return [Refused(request.request_id, QUEUE_FULL, None)]
    if first == "hang":
        return [Output(request.request_id, 0, "HANG", [1])] if request.stream else []
    if first == "garbage":
        return [b"\xc1"]
    pieces = [piece for word in text.upper().split(" ") for piece in (" ", word)][1:]
    return answer_with(request, pieces, first if first in ("abort", "deadline", "error") else "stop")


class FakeEngine:
    """Listens at `address` until the end of the `with` block.

    Attributes:
        submits: every Submit, in order.
        aborted: every aborted request id, in order.
        queries: how many StatusQuery messages came.
        silent: answer nothing.
        release_at: the number of the StatusQuery at which hanging requests finish.
    """

    def __init__(self, address: str, script: Script = echo) -> None:
        self.address = address
        self.submits: list[Submit] = []
        self.aborted: list[str] = []
        self.queries = 0
        self.silent = False
        self.release_at = 0
        self._script = script
        self._unfinished: dict[str, set[int]] = {}
        self._stop = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def requests(self) -> list[GenerationRequest]:
        """Every request, in order."""
        return [request for submit in self.submits for request in submit.requests]

    def stop(self) -> None:
        """Close the socket."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        self._bound.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(self.address)
            self._bound.set()
            while not self._stop.is_set():
                if socket.poll(10):
                    client, frame = socket.recv_multipart()
                    for answer in self._answers(msgspec.msgpack.decode(frame, type=ClientMessage)):
                        socket.send_multipart([client, answer])

    def _answers(self, message: ClientMessage) -> list[bytes]:
        answers: list[Answer] = []
        if isinstance(message, Submit):
            self.submits.append(message)
            for request in message.requests:
                self._unfinished[request.request_id] = set(range(request.sampling.n))
                answers += self._script(request)
        elif isinstance(message, Abort):
            self.aborted += message.request_ids
            for name in message.request_ids:
                answers += [Output(name, index, "", [], None, "abort") for index in self._unfinished.pop(name, ())]
        elif isinstance(message, StatusQuery):
            self.queries += 1
            answers.append(fake_status(message.query_id))
            if self.queries == self.release_at:
                answers += [Output(name, 0, "", [], None, "length") for name in self._unfinished]
        for answer in answers:
            if isinstance(answer, Output) and answer.finish_reason is not None:
                self._unfinished.get(answer.request_id, set()).discard(answer.index)
        if self.silent:
            return []
        return [answer if isinstance(answer, bytes) else msgspec.msgpack.encode(answer) for answer in answers]


class FakeSupervisor:
    """Stands for a supervisor whose engine is a `FakeEngine`."""

    def __init__(self, engine: FakeEngine, config: EngineConfig) -> None:
        self.engine = engine
        self.address = engine.address
        self.config = config
        self.status = fake_status()
        self.mps = False
        self.failure: EngineError | None = None
        self.failed = threading.Event()
        self.shutdowns = 0

    def fail(self, reason: str) -> None:
        """End by itself."""
        self.failure = EngineError(reason)
        self.failed.set()

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def shutdown(self) -> None:
        self.shutdowns += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def main(directory: str, *arguments: str) -> int:
    """Run a command line of zipage against a fake engine; what the engine saw goes into `directory`/seen."""
    from zipage.cli import main as zipage_main
    from zipage.supervisor import Supervisor

    with FakeEngine(f"ipc://{directory}/engine") as engine:

        def start(config: EngineConfig) -> FakeSupervisor:
            supervisors.append(FakeSupervisor(engine, config))
            return supervisors[-1]

        supervisors: list[FakeSupervisor] = []
        Supervisor.start = start  # type: ignore[method-assign, assignment]
        try:
            return zipage_main(list(arguments))
        finally:
            assert wait_until(lambda: len(engine.aborted) >= int(os.environ.get("EXPECTED_ABORTS", "0")))
            ended = [supervisor.shutdowns for supervisor in supervisors]
            Path(directory, "seen").write_text(f"aborted {len(engine.aborted)}, shutdowns {ended}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
