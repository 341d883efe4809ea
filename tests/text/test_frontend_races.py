"""The frontend against a scheduler that answers late, in random order of events."""

import random
from collections import Counter, deque

import pytest
import small_tokenizers

from zipage.engine_messages import (
    AbortTokens,
    RefusedTokens,
    SampledToken,
    SchedulerMessage,
    SubmitTokens,
    TokenizerMessage,
    TokenOutput,
    TokenOutputs,
)
from zipage.messages import Abort, GenerationRequest, Output, Refused, RequestMetrics, Submit
from zipage.models.config import GenerationDefaults
from zipage.sampling_params import SamplingParams
from zipage.text.frontend import ModelText, Outbox, TextFrontend

METRICS = RequestMetrics(0.0, 0.0, 0.0, 1, 1, 0, 1, 0, 0, 0.0, 0.0)
CLIENTS = (b"a", b"b", b"c")


class LateScheduler:
    """Keeps the scheduler's side of the link: every live uid ends once, aborts of others are ignored."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.inbox: deque[TokenizerMessage] = deque()
        self.outbox: deque[SchedulerMessage] = deque()
        self.live: list[int] = []

    def receive(self) -> None:
        message = self.inbox.popleft()
        if isinstance(message, SubmitTokens):
            for request in message.requests:
                if 3 in request.prompt_token_ids or self.choose.random() < 0.05:
                    self.outbox.append(RefusedTokens(request.uid, "refused", None))
                else:
                    self.live.append(request.uid)
        elif isinstance(message, AbortTokens):
            aborted = [uid for uid in self.live if uid in message.uids]
            self.live = [uid for uid in self.live if uid not in message.uids]
            self.outbox.append(TokenOutputs([TokenOutput(uid, None, "abort", metrics=METRICS) for uid in aborted]))

    def step(self) -> None:
        outputs = []
        for uid in list(self.live):
            reason = self.choose.choice(("length", "deadline", "error")) if self.choose.random() < 0.1 else None
            if reason is not None:
                self.live.remove(uid)
            sampled = SampledToken(self.choose.randint(5, 9)) if reason in (None, "length") else None
            outputs.append(TokenOutput(uid, sampled, reason, metrics=METRICS if reason is not None else None))
        self.outbox.append(TokenOutputs(outputs))


class Clients:
    """Every client's view: the text of each of its requests, and how each completion ended."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.submitted: dict[tuple[bytes, str], int] = {}
        self.gone: set[bytes] = set()
        self.ended: Counter[tuple[bytes, str, int]] = Counter()
        self.refused: Counter[tuple[bytes, str]] = Counter()

    def new_request(self, client: bytes) -> GenerationRequest:
        request_id = f"r{len(self.submitted)}"
        sampling = SamplingParams(n=self.choose.randint(1, 3), stop=("AB", "CC"), min_tokens=self.choose.randint(0, 4))
        self.submitted[client, request_id] = sampling.n
        prompt = self.choose.choice(("A", "B", "\n"))
        stream = self.choose.random() < 0.5
        return GenerationRequest(request_id=request_id, prompt=prompt, sampling=sampling, stream=stream)

    def receive(self, outbox: Outbox) -> None:
        for client, message in outbox.to_clients:
            assert client not in self.gone
            if isinstance(message, Refused):
                self.refused[client, message.request_id] += 1
            elif isinstance(message, Output):
                key = client, message.request_id, message.index
                assert not self.ended[key]
                self.ended[key] += message.finish_reason is not None

    def assert_every_request_has_ended(self) -> None:
        for (client, request_id), n in self.submitted.items():
            if client not in self.gone:
                ended = [self.ended[client, request_id, index] for index in range(n)]
                refused = self.refused[client, request_id]
                assert (refused, ended) in ((0, [1] * n), (1, [0] * n))


@pytest.mark.parametrize("seed", range(40))
def test_every_completion_ends_once_whatever_crosses_on_the_way(seed: int) -> None:
    choose = random.Random(seed)
    model = ModelText(small_tokenizers.characters(), 64, (2,), GenerationDefaults())
    frontend, scheduler, clients = TextFrontend(model, 0), LateScheduler(choose), Clients(choose)

    def take(outbox: Outbox) -> None:
        clients.receive(outbox)
        scheduler.inbox.extend(outbox.to_scheduler)

    for _ in range(300):
        client = choose.choice([client for client in CLIENTS if client not in clients.gone])
        match choose.choice(["submit", "abort", "gone", *["receive"] * 3, *["step"] * 3, *["deliver"] * 4]):
            case "submit":
                requests = [clients.new_request(client) for _ in range(choose.randint(1, 3))]
                take(frontend.on_client(client, Submit(requests)))
            case "abort" if clients.submitted:
                request_ids = [request_id for _, request_id in clients.submitted]
                take(frontend.on_client(client, Abort(choose.choices(request_ids, k=3))))
            case "gone" if len(clients.gone) < 2 and choose.random() < 0.1:
                clients.gone.add(client)
                take(frontend.client_gone(client))
            case "receive" if scheduler.inbox:
                scheduler.receive()
            case "step":
                scheduler.step()
            case "deliver" if scheduler.outbox:
                take(frontend.on_scheduler(scheduler.outbox.popleft()))
    while scheduler.inbox or scheduler.outbox or scheduler.live:
        if scheduler.inbox:
            scheduler.receive()
        elif not scheduler.outbox:
            scheduler.step()
        if scheduler.outbox:
            take(frontend.on_scheduler(scheduler.outbox.popleft()))
    clients.assert_every_request_has_ended()
    assert (frontend._requests, frontend._unfinished) == ({}, {})
