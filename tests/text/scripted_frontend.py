"""A frontend for tests that script what clients and scheduler send it."""

from typing import Any

import small_tokenizers

from zipage.engine_messages import SampledToken, SubmitTokens, TokenOutput, TokenOutputs
from zipage.messages import EngineMessage, GenerationRequest, Output, RequestMetrics, Submit
from zipage.models.config import GenerationDefaults
from zipage.sampling_params import SamplingParams
from zipage.text.frontend import ModelText, Outbox, TextFrontend

METRICS = RequestMetrics(1.0, 2.0, 3.0, 4, 5, 0, 6, 0, 0, 0.0, 0.0)
A, B = b"client-a", b"client-b"
EOS = 2


def token(character: str) -> int:
    return small_tokenizers.characters().encode(character)[-1]


def make_frontend(**defaults: Any) -> TextFrontend:
    model = ModelText(small_tokenizers.characters(), 64, (EOS,), GenerationDefaults(**defaults))
    return TextFrontend(model, engine_seed=7)


def request(request_id: str = "r", *, stream: bool = False, prompt: str | None = "AB", **sampling: Any) -> Any:
    params = SamplingParams(**sampling)
    return GenerationRequest(request_id=request_id, prompt=prompt, sampling=params, stream=stream)


def submit(frontend: TextFrontend, *requests: GenerationRequest, client: bytes = A) -> list[int]:
    """Submit requests that are all accepted; returns the uids."""
    outbox = frontend.on_client(client, Submit(list(requests)))
    assert outbox.to_clients == []
    [message] = outbox.to_scheduler
    assert isinstance(message, SubmitTokens)
    return [item.uid for item in message.requests]


def output(uid: int, character: str | None, finish_reason: str | None = None, **fields: Any) -> TokenOutput:
    sampled = None if character is None else SampledToken(EOS if character == "eos" else token(character))
    metrics = None if finish_reason is None else METRICS
    return TokenOutput(uid, sampled, finish_reason, metrics=metrics, **fields)


def step(frontend: TextFrontend, *outputs: TokenOutput) -> Outbox:
    return frontend.on_scheduler(TokenOutputs(list(outputs)))


def generate(frontend: TextFrontend, uid: int, text: str) -> list[EngineMessage]:
    """One step for each character of `text`; nothing goes to the scheduler."""
    messages: list[EngineMessage] = []
    for character in text:
        outbox = step(frontend, output(uid, character))
        assert outbox.to_scheduler == []
        messages += [message for _, message in outbox.to_clients]
    return messages


def last(outbox: Outbox, client: bytes = A) -> Output:
    [(receiver, message)] = outbox.to_clients
    assert receiver == client
    assert isinstance(message, Output)
    assert message.finish_reason is not None
    return message


def assert_empty(frontend: TextFrontend) -> None:
    assert (frontend._requests, frontend._unfinished, frontend._queries) == ({}, {}, {})
