"""How completions end: stop tokens, stop strings, aborts, deadlines, errors, and what is sent of them."""

import pytest
from scripted_frontend import (
    EOS,
    METRICS,
    A,
    assert_empty,
    generate,
    last,
    make_frontend,
    output,
    request,
    step,
    submit,
)

from zipage.engine_messages import AbortTokens
from zipage.messages import Abort
from zipage.text.frontend import Outbox


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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reason", ["deadline", "error"])
def test_what_the_scheduler_ends_early_returns_the_text_so_far(stream: bool, reason: str) -> None:
    frontend = make_frontend()
    first, second = submit(frontend, request(n=2, stream=stream, stop=("BZ",)))
    messages = generate(frontend, first, "AB")
    finished = last(step(frontend, output(first, None, reason)))
    assert "".join(message.text for message in messages) + finished.text == "AB"
    assert [token_id for message in messages for token_id in message.token_ids] + finished.token_ids == [5, 6]
    assert (finished.finish_reason, finished.stop_reason, finished.metrics) == (reason, None, METRICS)
    # The other completion has not run yet, or goes on.
    nothing = last(step(frontend, output(second, None, reason)))
    assert (nothing.index, nothing.text, nothing.token_ids, nothing.finish_reason) == (1, "", [], reason)
    assert_empty(frontend)


@pytest.mark.parametrize("reason", ["deadline", "error"])
def test_an_early_end_after_the_stop_string_is_that_of_the_stop_string(reason: str) -> None:
    frontend = make_frontend()
    [uid] = submit(frontend, request(stop=("B",)))
    generate(frontend, uid, "A")
    assert step(frontend, output(uid, "B")).to_scheduler == [AbortTokens([uid])]
    finished = last(step(frontend, output(uid, None, reason)))
    assert (finished.text, finished.finish_reason, finished.stop_reason) == ("A", "stop", "B")
    assert_empty(frontend)


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
