"""The tokenizer process's state machine with scripted messages of clients and scheduler."""

from typing import Any

import pytest
import small_tokenizers

from zipage.messages import (
    Abort,
    AbortTokens,
    EngineMessage,
    GenerationRequest,
    Output,
    PositionLogprobs,
    Refused,
    RefusedTokens,
    RequestMetrics,
    SampledToken,
    Status,
    StatusQuery,
    Submit,
    SubmitTokens,
    TokenLogprob,
    TokenOutput,
    TokenOutputs,
)
from zipage.models.config import GenerationDefaults
from zipage.sampling_params import SamplingParams
from zipage.text.frontend import ModelText, Outbox, TextFrontend

METRICS = RequestMetrics(1.0, 2.0, 3.0, 4, 5, 0, 6, 0)
A, B = b"client-a", b"client-b"
EOS = 2


def token(character: str) -> int:
    return small_tokenizers.bundled().encode(character)[-1]


def make_frontend(**defaults: Any) -> TextFrontend:
    model = ModelText(small_tokenizers.bundled(), 64, (EOS,), GenerationDefaults(**defaults))
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


def test_submit_expands_every_request_in_order() -> None:
    frontend = make_frontend(temperature=0.5)
    outbox = frontend.on_client(A, Submit([request("x", n=2, seed=10), request("y", prompt="C", max_tokens=3)]))
    [message] = outbox.to_scheduler
    assert [item.uid for item in message.requests] == [0, 1, 2]
    assert [item.prompt_token_ids for item in message.requests] == [[1, 5, 6], [1, 5, 6], [1, 7]]
    assert [item.params.seed for item in message.requests][:2] == [10, 11]
    assert [item.params.temperature for item in message.requests] == [0.5] * 3
    assert [item.params.max_tokens for item in message.requests] == [None, None, 3]
    assert all(item.eos_token_ids == (EOS,) and item.params.n == 1 for item in message.requests)
    assert submit(frontend, request("x"), client=B) == [3]


def test_refused_request_leaves_the_others_alone() -> None:
    frontend = make_frontend()
    requests = [
        request("good"),
        request("none", prompt=None),
        GenerationRequest(request_id="ids", prompt_token_ids=[64]),
        request("stop", stop_token_ids=(64,)),
        request("good"),
        request("fine"),
    ]
    outbox = frontend.on_client(A, Submit(requests))
    refused = [(client, message.request_id, message.field) for client, message in outbox.to_clients]
    fields = {"none": None, "ids": "prompt_token_ids", "stop": "stop_token_ids", "good": "request_id"}
    assert refused == [(A, name, field) for name, field in fields.items()]
    assert all(isinstance(message, Refused) and message.message for _, message in outbox.to_clients)
    [message] = outbox.to_scheduler
    assert len(message.requests) == 2
    for uid in (0, 1):
        assert last(step(frontend, output(uid, "A", "length"))).text == "A"
    assert_empty(frontend)


def test_nothing_is_submitted_where_nothing_is_accepted() -> None:
    frontend = make_frontend()
    assert frontend.on_client(A, Submit([request(prompt=None)])).to_scheduler == []
    assert frontend.on_client(A, Submit([])) == Outbox()
    assert_empty(frontend)


def test_stream_sends_every_step() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stream=True))
    messages = generate(frontend, uid, "AB")
    assert messages == [Output("r", 0, "A", [5]), Output("r", 0, "B", [6])]
    expected = Output("r", 0, "C", [7], finish_reason="length", metrics=METRICS)
    assert step(frontend, output(uid, "C", "length")).to_clients == [(A, expected)]
    assert_empty(frontend)


def test_whole_output_comes_at_the_end() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request())
    assert generate(frontend, uid, "AB") == []
    expected = Output("r", 0, "ABC", [5, 6, 7], finish_reason="length", metrics=METRICS)
    assert step(frontend, output(uid, "C", "length")).to_clients == [(A, expected)]
    assert_empty(frontend)


def test_completions_of_one_request_end_by_themselves() -> None:
    frontend = make_frontend()
    first, second = submit(frontend, request(n=2))
    generate(frontend, first, "A")
    assert last(step(frontend, output(second, "B", "length"))).index == 1
    assert frontend.on_client(A, Submit([request()])).to_clients[0][1].field == "request_id"
    finished = last(step(frontend, output(first, "C", "length")))
    assert (finished.index, finished.text) == (0, "AC")
    assert_empty(frontend)
    assert submit(frontend, request()) == [2]


@pytest.mark.parametrize(
    ("character", "sampling", "stop_reason", "text"),
    [
        ("eos", {}, None, "A"),
        ("eos", {"include_stop": True}, None, "A"),
        ("eos", {"include_stop": True, "skip_special_tokens": False}, None, "A</s>"),
        ("eos", {"skip_special_tokens": False}, None, "A"),
        ("D", {"stop_token_ids": (8,)}, 8, "A"),
        ("D", {"stop_token_ids": (8,), "include_stop": True}, 8, "AD"),
    ],
)
def test_stop_token(character: str, sampling: dict, stop_reason: int | None, text: str) -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(**sampling))
    generate(frontend, uid, "A")
    outbox = step(frontend, output(uid, character, "stop", stop_reason=stop_reason))
    finished = last(outbox)
    assert (finished.text, finished.finish_reason, finished.stop_reason) == (text, "stop", stop_reason)
    assert finished.token_ids == [5, EOS if character == "eos" else 8]
    assert outbox.to_scheduler == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("include_stop", "text"), [(False, "AB"), (True, "ABCD")])
def test_stop_string_waits_for_the_metrics(stream: bool, include_stop: bool, text: str) -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stream=stream, stop=("CD",), include_stop=include_stop))
    messages = generate(frontend, uid, "ABC")
    assert [message.text for message in messages] == (["A", "B", ""] if stream else [])
    matched = step(frontend, output(uid, "D"))
    assert matched == Outbox(to_scheduler=[AbortTokens([uid])])
    # Tokens that were on their way, then the answer to the abort.
    assert step(frontend, output(uid, "E")) == Outbox()
    outbox = step(frontend, output(uid, None, "abort"))
    assert outbox.to_scheduler == []
    finished = last(outbox)
    assert "".join(message.text for message in messages) + finished.text == text
    assert [token_id for message in messages for token_id in message.token_ids] + finished.token_ids == [5, 6, 7, 8]
    assert (finished.finish_reason, finished.stop_reason, finished.metrics) == ("stop", "CD", METRICS)
    assert_empty(frontend)


def test_stop_string_with_the_last_token() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stop=("B",)))
    generate(frontend, uid, "A")
    outbox = step(frontend, output(uid, "B", "length"))
    finished = last(outbox)
    assert (finished.text, finished.finish_reason, finished.stop_reason) == ("A", "stop", "B")
    assert outbox.to_scheduler == []
    assert_empty(frontend)


def test_request_that_ends_by_itself_after_its_stop_string() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stop=("A",)))
    assert step(frontend, output(uid, "A")).to_scheduler == [AbortTokens([uid])]
    finished = last(step(frontend, output(uid, "eos", "stop")))
    assert (finished.text, finished.stop_reason, finished.token_ids) == ("", "A", [5])
    assert_empty(frontend)


def test_held_back_text_is_returned_at_the_end() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stop=("BCX",)))
    generate(frontend, uid, "AB")
    finished = last(step(frontend, output(uid, "C", "length")))
    assert (finished.text, finished.finish_reason, finished.stop_reason) == ("ABC", "length", None)


def test_stop_string_counts_from_min_tokens() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stop=("A", "BB"), min_tokens=4))
    generate(frontend, uid, "AAB")
    assert step(frontend, output(uid, "B")).to_scheduler == [AbortTokens([uid])]
    finished = last(step(frontend, output(uid, None, "abort")))
    assert (finished.text, finished.stop_reason) == ("AA", "BB")


@pytest.mark.parametrize("stream", [False, True])
def test_client_abort_returns_the_text_so_far(stream: bool) -> None:
    frontend = make_frontend()
    first, second = submit(frontend, request(n=2, stream=stream, stop=("BZ",)))
    messages = generate(frontend, first, "AB")
    outbox = frontend.on_client(A, Abort(["r", "unknown", "r"]))
    assert outbox == Outbox(to_scheduler=[AbortTokens([first, second])])
    assert frontend.on_client(A, Abort(["r"])) == Outbox()
    finished = last(step(frontend, output(first, None, "abort")))
    assert "".join(message.text for message in messages) + finished.text == "AB"
    assert (finished.finish_reason, finished.metrics) == ("abort", METRICS)
    # The second one had just finished by itself when the abort arrived.
    assert last(step(frontend, output(second, "C", "length"))).finish_reason == "length"
    assert frontend.on_client(A, Abort(["r"])) == Outbox()
    assert_empty(frontend)


def test_abort_of_another_clients_request_does_nothing() -> None:
    frontend = make_frontend()
    submit(frontend, request())
    assert frontend.on_client(B, Abort(["r"])) == Outbox()


def test_abort_of_a_request_that_met_its_stop_string() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stop=("A",)))
    step(frontend, output(uid, "A"))
    assert frontend.on_client(A, Abort(["r"])) == Outbox()
    assert last(step(frontend, output(uid, None, "abort"))).finish_reason == "stop"


def test_stop_string_after_an_abort_was_sent() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stop=("A",)))
    frontend.on_client(A, Abort(["r"]))
    assert step(frontend, output(uid, "A")) == Outbox()
    finished = last(step(frontend, output(uid, None, "abort")))
    assert (finished.finish_reason, finished.stop_reason) == ("stop", "A")
    assert_empty(frontend)


def test_gone_client_is_sent_nothing_more() -> None:
    frontend = make_frontend()
    gone = submit(frontend, request(n=2, stream=True), request("s", stop=("A",)))
    [stays] = submit(frontend, request(), client=B)
    step(frontend, output(gone[2], "A"))
    frontend.on_client(A, StatusQuery(1))
    assert frontend.client_gone(A) == Outbox(to_scheduler=[AbortTokens(gone[:2])])
    assert frontend.client_gone(A) == Outbox()
    assert step(frontend, output(gone[0], "B"), output(gone[2], None, "abort")) == Outbox()
    assert frontend.on_scheduler(status(0)) == Outbox()
    ended = step(frontend, *(output(uid, None, "abort") for uid in gone[:2]), output(stays, "C", "length"))
    assert last(ended, B).text == "C"
    assert_empty(frontend)


def test_client_that_comes_back_can_use_its_ids_again() -> None:
    frontend = make_frontend()
    [old] = submit(frontend, request())
    frontend.client_gone(A)
    [new] = submit(frontend, request())
    assert step(frontend, output(old, None, "abort")) == Outbox()
    assert last(step(frontend, output(new, "A", "length"))).text == "A"
    assert_empty(frontend)


def test_scheduler_refuses_all_completions_of_a_request() -> None:
    frontend = make_frontend()
    uids = submit(frontend, request(n=3))
    outbox = frontend.on_scheduler(RefusedTokens(uids[0], "too long", "prompt"))
    assert outbox == Outbox([(A, Refused("r", "too long", "prompt"))], [AbortTokens(uids[1:])])
    [again] = submit(frontend, request())
    assert frontend.on_scheduler(RefusedTokens(uids[1], "too long", "prompt")) == Outbox()
    assert step(frontend, output(uids[2], None, "abort")) == Outbox()
    assert last(step(frontend, output(again, "A", "length"))).text == "A"
    assert_empty(frontend)


def test_scheduler_refuses_a_request_whose_client_has_gone() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request())
    frontend.client_gone(A)
    assert frontend.on_scheduler(RefusedTokens(uid, "too long", "prompt")) == Outbox()
    assert_empty(frontend)


def test_messages_about_ended_completions_are_ignored() -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request())
    step(frontend, output(uid, "A", "length"))
    assert step(frontend, output(uid, "A"), output(uid, None, "abort")) == Outbox()
    assert frontend.on_scheduler(RefusedTokens(uid, "x", None)) == Outbox()
    assert_empty(frontend)


def status(query_id: int) -> Status:
    counts = dict.fromkeys(("running", "waiting", "compressing", "blocks_total", "blocks_used", "blocks_peak"), 1)
    counts |= dict.fromkeys(("slots_total", "slots_used", "steps", "compressions", "preemptions"), 2)
    counts |= dict.fromkeys(
        ("prompt_tokens", "cached_tokens", "output_tokens", "max_model_len", "kv_budget", "block_size"), 3
    )
    return Status(query_id=query_id, model="m", integrity_errors=[], **counts)


def test_status_goes_to_the_client_that_asked() -> None:
    frontend = make_frontend()
    assert frontend.on_client(A, StatusQuery(5)) == Outbox(to_scheduler=[StatusQuery(0)])
    assert frontend.on_client(B, StatusQuery(5)) == Outbox(to_scheduler=[StatusQuery(1)])
    assert frontend.on_scheduler(status(1)) == Outbox([(B, status(5))])
    assert frontend.on_scheduler(status(0)) == Outbox([(A, status(5))])
    assert frontend.on_scheduler(status(0)) == Outbox()
    assert_empty(frontend)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_the_text_of_each_token(stream: bool) -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stream=stream, logprobs=2, stop=("B",)))
    first = TokenOutput(uid, SampledToken(5, -0.5, [(5, -0.5), (EOS, -1.5)]))
    second = TokenOutput(uid, SampledToken(6, -0.25, []), "length", metrics=METRICS)
    outputs = [message for item in (first, second) for _, message in step(frontend, item).to_clients]
    likeliest = [TokenLogprob(5, "A", -0.5), TokenLogprob(EOS, "</s>", -1.5)]
    expected = [PositionLogprobs(likeliest[0], likeliest), PositionLogprobs(TokenLogprob(6, "B", -0.25), [])]
    assert [message.logprobs for message in outputs] == ([expected[:1], expected[1:]] if stream else [expected])


def test_characters_of_several_tokens() -> None:
    tokenizer = small_tokenizers.byte_level()
    frontend = TextFrontend(ModelText(tokenizer, tokenizer.vocab_size, (), GenerationDefaults()), 0)
    [uid] = submit(frontend, request(prompt="the", stream=True, stop=("ʥ!",)))
    token_ids = tokenizer.encode(" ʥʥ")[1:]
    texts = []
    for token_id in [*token_ids, token_ids[-2]]:
        [(_, message)] = step(frontend, TokenOutput(uid, SampledToken(token_id))).to_clients
        texts.append(message.text)
    assert texts == [" ", "", "", "", "ʥ", ""]
    assert last(step(frontend, output(uid, None, "abort"))).text == "ʥ\ufffd"
