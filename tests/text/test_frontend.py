"""The tokenizer process's state machine with scripted messages of clients and scheduler."""

from typing import Any

import pytest
import small_tokenizers
from scripted_frontend import (
    EOS,
    METRICS,
    A,
    B,
    assert_empty,
    generate,
    last,
    make_frontend,
    output,
    request,
    step,
    submit,
)

from zipage.engine_messages import AbortTokens, RefusedTokens, SampledToken, TokenOutput
from zipage.messages import (
    Abort,
    GenerationRequest,
    Output,
    PositionLogprobs,
    Refused,
    Status,
    StatusQuery,
    Submit,
    TokenLogprob,
)
from zipage.models.config import GenerationDefaults
from zipage.text.frontend import ModelText, Outbox, TextFrontend


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


def test_priority_and_deadline_are_those_of_every_completion() -> None:
    outbox = make_frontend().on_client(A, Submit([request(n=2, priority=-3, deadline=1.5), request("y")]))
    [message] = outbox.to_scheduler
    params = [(item.params.priority, item.params.deadline) for item in message.requests]
    assert params == [(-3, 1.5), (-3, 1.5), (0, None)]


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


def test_abort_of_another_clients_request_does_nothing() -> None:
    frontend = make_frontend()
    submit(frontend, request())
    assert frontend.on_client(B, Abort(["r"])) == Outbox()


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


def test_a_full_queue_refuses_the_whole_request() -> None:
    frontend = make_frontend()
    uids = submit(frontend, request(n=3))
    outbox = frontend.on_scheduler(RefusedTokens(uids[2], "the engine is full: max_waiting", None))
    assert outbox == Outbox([(A, Refused("r", "the engine is full: max_waiting", None))], [AbortTokens(uids[:2])])
    assert step(frontend, *(output(uid, None, "abort") for uid in uids[:2])) == Outbox()
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
    counts: dict[str, Any] = {name: number for number, name in enumerate(Status.__struct_fields__)}
    return Status(**counts | {"query_id": query_id, "model": "m", "integrity_errors": []})


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


@pytest.mark.parametrize("reason", ["abort", "deadline", "error"])
def test_characters_of_several_tokens(reason: str) -> None:
    tokenizer = small_tokenizers.byte_level()
    frontend = TextFrontend(ModelText(tokenizer, tokenizer.vocab_size, (), GenerationDefaults()), 0)
    [uid] = submit(frontend, request(prompt="the", stream=True, stop=("ʥ!",)))
    token_ids = tokenizer.encode(" ʥʥ")[1:]
    texts = []
    for token_id in [*token_ids, token_ids[-2]]:
        [(_, message)] = step(frontend, TokenOutput(uid, SampledToken(token_id))).to_clients
        texts.append(message.text)
    assert texts == [" ", "", "", "", "ʥ", ""]
    assert last(step(frontend, output(uid, None, reason))).text == "ʥ\ufffd"
