"""The plain client against a fake engine."""

import socket
from pathlib import Path

import msgspec
import pytest
from fake_engine import QUEUE_FULL, FakeEngine, answer_with, fake_status
from process_helpers import wait_until

from zipage.client import Client
from zipage.client_requests import PendingRequests
from zipage.errors import EngineError, InvalidRequestError
from zipage.messages import Alive, GenerationRequest, Output, Status
from zipage.sampling_params import SamplingParams


@pytest.fixture
def engine(tmp_path):
    with FakeEngine(f"ipc://{tmp_path}/engine") as engine:
        yield engine


@pytest.fixture
def client(engine):
    with Client(engine.address) as client:
        yield client


@pytest.mark.parametrize("prompts, texts", [("a b", ["A B"]), ([1, 2], ["1 2"]), (["a", [3]], ["A", "3"]), ([], [])])
def test_generate_takes_text_and_token_ids(client, prompts, texts):
    assert [result.text for result in client.generate(prompts)] == texts


def test_all_prompts_of_one_call_go_out_in_one_message(engine, client):
    results = client.generate([f"prompt {number}" for number in range(200)])
    assert [result.text for result in results] == [f"PROMPT {number}" for number in range(200)]
    assert len(engine.submits) == 1


def test_a_result_has_what_the_engine_sent(client):
    result = client.generate("a b", SamplingParams(n=2, logprobs=1))[0]
    assert [completion.index for completion in result.completions] == [0, 1]
    first = result.completions[0]
    assert (first.text, first.token_ids, first.finish_reason, first.stop_reason) == ("A B", [0], "stop", None)
    assert first.logprobs[0].sampled.logprob == -0.5
    assert result.prompt_tokens == first.metrics.prompt_tokens == 3


def test_one_params_for_each_prompt(engine, client):
    client.generate(["a", "b"], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)])
    assert [request.sampling.max_tokens for request in engine.requests] == [1, 2]


def test_priority_and_deadline_reach_the_engine(engine, client):
    params = SamplingParams(priority=-100, deadline=0.5)
    client.generate(["a", "b"], [params, SamplingParams()])
    client.chat([{"role": "user", "content": "x"}], params)
    list(client.stream("a", params))
    seen = [(request.sampling.priority, request.sampling.deadline) for request in engine.requests]
    assert seen == [(-100, 0.5), (0, None), (-100, 0.5), (-100, 0.5)]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"priority": -101}, r"priority must be in \[-100, 100\], not -101"),
        ({"deadline": 0.0}, r"deadline must be in \(0, inf\), not 0.0"),
        ({"deadline": float("inf")}, r"deadline must be in \(0, inf\), not inf"),
    ],
)
def test_priority_and_deadline_have_ranges(fields, message):
    with pytest.raises(InvalidRequestError, match=message) as caught:
        SamplingParams(**fields)
    assert caught.value.field in fields


def test_a_priority_of_a_wrong_type_is_refused_before_it_is_sent(engine, client):
    with pytest.raises(InvalidRequestError, match=r"Expected `int`, got `float` - at `\$.sampling.priority`"):
        client.generate("a", SamplingParams(priority=0.5))
    assert engine.submits == []


@pytest.mark.parametrize("reason", ["abort", "deadline", "error"])
def test_what_was_cut_short_has_its_text_and_says_why(client, reason):
    [result] = client.generate(f"{reason} b", SamplingParams(n=2))
    assert result.error is None
    assert [(each.text, each.finish_reason) for each in result.completions] == [(f"{reason.upper()} B", reason)] * 2
    assert result.completions[0].metrics.swaps == 0
    outputs = list(client.stream(f"{reason} b"))
    assert "".join(output.text for output in outputs) == f"{reason.upper()} B"
    assert [output.finish_reason for output in outputs] == [None, None, reason]


def test_a_full_engine_refuses_with_its_own_words(client):
    results = client.generate(["a", "full"])
    assert (str(results[1].error), results[1].error.field) == (QUEUE_FULL, None)
    with pytest.raises(InvalidRequestError, match="max_waiting lets 0 to 4 do so") as caught:
        client.generate("full")
    assert caught.value.field is None
    with pytest.raises(InvalidRequestError, match="max_waiting"):
        next(client.stream("full"))
    assert client.generate("a")[0].text == "A"


@pytest.mark.parametrize(
    "prompts, params, message",
    [
        (["a", "b"], [SamplingParams()], "one for each of 2, not 1"),
        ("a", {"n": 1}, "must be SamplingParams"),
        (5, None, "prompts must be a string"),
        ([1, "a"], None, "prompt 0 must be a string or a list of token ids"),
        ([{"role": "user", "content": "x"}], None, "conversations go to chat"),
        ([True], None, "prompt 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(engine, client, prompts, params, message):
    with pytest.raises(InvalidRequestError, match=message):
        client.generate(prompts, params)
    assert engine.submits == []


def test_one_refused_prompt_does_not_lose_the_others(client):
    results = client.generate(["a", "refuse this", "b"])
    assert [result.error is None for result in results] == [True, False, True]
    assert results[0].text == "A"
    assert results[2].text == "B"
    assert results[1].completions == []
    assert results[1].prompt_tokens is None
    assert results[1].error.field == "prompt"
    with pytest.raises(InvalidRequestError, match="shorter"):
        _ = results[1].text


def test_a_prompt_by_itself_raises_when_it_is_refused(client):
    with pytest.raises(InvalidRequestError, match="prompt must be shorter") as caught:
        client.generate("refuse")
    assert caught.value.field == "prompt"


def test_a_prompt_that_cannot_be_sent_does_not_spoil_the_message(engine, client):
    params = [SamplingParams(), SamplingParams(), SamplingParams(stop="abc"), SamplingParams()]
    results = client.generate(["a", "\ud800", "b", [2**70]], params)
    assert [result.error is None for result in results] == [True, False, False, False]
    assert "surrogates" in str(results[1].error)
    assert "stop" in str(results[2].error)
    assert [request.prompt for request in engine.requests] == ["a"]


def test_chat_takes_one_conversation_or_several(client):
    question = [{"role": "user", "content": "x"}]
    assert client.chat(question)[0].text == "USER:X"
    assert [result.text for result in client.chat([question, question])] == ["USER:X", "USER:X"]
    with pytest.raises(InvalidRequestError, match="messages must be a list of messages"):
        client.chat(["x"])


def test_stream_gives_the_pieces_as_they_come(client):
    outputs = list(client.stream("a b"))
    assert [output.text for output in outputs] == ["A", " ", "B"]
    assert [output.finish_reason for output in outputs] == [None, None, "stop"]


@pytest.mark.parametrize("prompt, text", [([4, 5], "4 5"), ([{"role": "user", "content": "x"}], "USER:X")])
def test_stream_takes_token_ids_and_conversations(client, prompt, text):
    assert "".join(output.text for output in client.stream(prompt)) == text


def test_stream_tells_completions_apart(client):
    outputs = list(client.stream("a b", SamplingParams(n=2)))
    assert ["".join(each.text for each in outputs if each.index == index) for index in (0, 1)] == ["A B", "A B"]


def test_stream_raises_a_refusal(client):
    with pytest.raises(InvalidRequestError, match="shorter"):
        next(client.stream("refuse"))
    with pytest.raises(InvalidRequestError, match="prompt must be"):
        client.stream(["a"])


def test_closing_a_stream_early_aborts_it(engine, client):
    stream = client.stream("hang")
    assert next(stream).text == "HANG"
    stream.close()
    assert wait_until(lambda: engine.aborted == [engine.requests[0].request_id])
    assert client.generate("a")[0].text == "A"


def test_two_streams_of_one_client_do_not_mix(client):
    pairs = list(zip(client.stream("a b"), client.stream("c d"), strict=True))
    assert [(first.text, second.text) for first, second in pairs] == [("A", "C"), (" ", " "), ("B", "D")]


def test_abort_ends_a_submitted_request(engine, client):
    client.submit([GenerationRequest(request_id="x", prompt="hang"), GenerationRequest(request_id="y", prompt="a")])
    assert client.wait(["x", "y"]).request_id == "y"
    client.abort(["x"])
    assert client.wait(["x"]).completions[0].finish_reason == "abort"
    with pytest.raises(InvalidRequestError, match="unfinished"):
        client.wait(["x"])


def test_request_ids_of_unfinished_requests_are_taken(client):
    request = GenerationRequest(request_id="x", prompt="hang")
    with pytest.raises(InvalidRequestError, match="'x' is the name of an unfinished request"):
        client.submit([request, request])


def test_completed_keeps_at_most_a_window_in_the_engine(engine, client):
    requests = (GenerationRequest(request_id=str(number), prompt=str(number)) for number in range(10))
    results = client.completed(requests, window=3)
    assert next(results).request_id == "0"
    assert len(engine.requests) == 3
    assert len(list(results)) == 9
    assert [len(submit.requests) for submit in engine.submits] == [3] + [1] * 7


def test_a_window_is_of_completions(engine, client):
    counts = [2, 1, 2, 9, 1, 3]
    requests = (
        GenerationRequest(request_id=str(place), prompt=str(place), sampling=SamplingParams(n=count))
        for place, count in enumerate(counts)
    )
    assert [len(result.completions) for result in client.completed(requests, window=4)] == counts
    # The third fits once the first has finished; the fourth, larger than the window, goes in alone.
    assert [len(submit.requests) for submit in engine.submits] == [2, 1, 1, 2]


def test_requests_are_taken_as_places_fall_free(engine, client):
    taken: list[str] = []

    def requests():
        for name in "abc":
            taken.append(name)
            yield GenerationRequest(request_id=name, prompt=name)

    results = client.completed(requests(), window=1)
    assert next(results).request_id == "a"
    assert taken == ["a"]
    assert [result.request_id for result in results] == ["b", "c"]


def test_leaving_early_aborts_what_is_unfinished(engine, client):
    results = client.completed([GenerationRequest(request_id=name, prompt=f"{name} x") for name in ("a", "hang")])
    next(results)
    results.close()
    assert wait_until(lambda: engine.aborted == ["hang"])


def test_an_interrupt_aborts_what_is_unfinished(engine):
    def interrupt():
        if engine.submits:
            raise KeyboardInterrupt

    with Client(engine.address, check=interrupt) as client:
        with pytest.raises(KeyboardInterrupt):
            client.generate(["hang", "hang"])
        assert wait_until(lambda: len(engine.aborted) == 2)


def test_closing_the_client_aborts_what_is_unfinished(engine):
    with Client(engine.address) as client:
        client.submit([GenerationRequest(request_id="x", prompt="hang")])
        assert wait_until(lambda: engine.submits)
    assert wait_until(lambda: engine.aborted == ["x"])
    with pytest.raises(EngineError, match="client is closed"):
        client.generate("a")
    client.close()


def test_status_is_the_engines(client):
    assert client.status() == fake_status(1)


def test_status_can_be_asked_for_inside_a_stream(client):
    stream = client.stream("a b")
    next(stream)
    assert client.status().blocks_total == 100
    assert [output.text for output in stream] == [" ", "B"]


def test_statuses_are_watched_while_the_client_waits(engine, client):
    class EnoughError(Exception):
        pass

    def watch(status):
        seen.append(status)
        if len(seen) == 3:
            raise EnoughError

    seen: list[Status] = []
    with client.watching_status(watch, 0.01), pytest.raises(EnoughError):
        client.generate("hang")
    client.generate("a")
    assert seen == [fake_status()] * 3


def test_nobody_at_the_address_is_an_error_that_names_it(tmp_path):
    with pytest.raises(EngineError, match=f"no engine listens at ipc://{tmp_path}/nobody: No such file"):
        Client(f"ipc://{tmp_path}/nobody")


def test_a_dead_socket_file_is_an_error_that_names_it(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/dead")
    with pytest.raises(EngineError, match=r"no engine listens at .*/dead: Connection refused"):
        Client(f"ipc://{tmp_path}/dead")


def test_a_silent_engine_is_an_error_within_the_timeout(engine):
    engine.silent = True
    with Client(engine.address, timeout=0.3) as client:
        with pytest.raises(EngineError, match=r"no answer from an engine at ipc://.* within 0.3 s"):
            client.generate("a")
        with pytest.raises(EngineError, match="no answer"):
            client.status()


def test_an_engine_that_answers_status_is_waited_for(engine):
    engine.release_at = 10
    with Client(engine.address, timeout=0.4) as client:
        assert client.generate("hang")[0].completions[0].finish_reason == "length"


def test_an_engine_that_goes_away_is_an_error(engine):
    with Client(engine.address, timeout=2) as client:
        stream = client.stream("hang")
        next(stream)
        engine.stop()
        with pytest.raises(EngineError, match="cannot be reached"):
            next(stream)


def test_check_explains_why_the_engine_went_away(engine):
    def check():
        if engine.silent:
            raise EngineError("decode worker was killed")

    with Client(engine.address, check=check) as client:
        stream = client.stream("hang")
        next(stream)
        engine.silent = True
        with pytest.raises(EngineError, match="decode worker was killed"):
            next(stream)


@pytest.mark.parametrize("address", ["", "nonsense", "ipc://" + "x" * 200, 5])
def test_an_address_that_is_none_is_an_error(address):
    with pytest.raises(EngineError, match="cannot connect to"):
        Client(address)


def malformed(request):
    kinds = {
        "bytes": [b"\xc1"],
        "nesting": [b"\x91" * 100_000],
        "text": [msgspec.msgpack.encode(Output("ab", 0, "x", [])).replace(b"ab", b"\xff\xff")],
        "type": [msgspec.msgpack.encode({"type": "Surprise"})],
        "field": [msgspec.msgpack.encode({"type": "Output", "request_id": 5})],
        "index": [Output(request.request_id, 5, "x", [])],
        "after the end": answer_with(request, ["x"]) * 2,
    }
    return kinds[request.prompt]


@pytest.mark.parametrize("kind", ["bytes", "nesting", "text", "type", "field", "index", "after the end"])
def test_a_malformed_answer_is_an_error(tmp_path: Path, kind):
    with FakeEngine(f"ipc://{tmp_path}/engine", malformed) as engine, Client(engine.address) as client:
        prompts = [kind, "index"] if kind == "after the end" else [kind]
        with pytest.raises(EngineError, match="malformed answer"):
            client.generate(prompts)


def test_an_abandoned_id_is_taken_until_its_end_has_arrived():
    pending = PendingRequests()
    request = GenerationRequest(request_id="a", prompt="x", sampling=SamplingParams(n=2))
    assert pending.submit([request]) is not None
    pending.forget("a")
    for index in (1, 0):
        with pytest.raises(InvalidRequestError, match="'a' is the name of an unfinished request"):
            pending.submit([request])
        late = Output("a", index, "late", [1], finish_reason="abort")
        assert pending.receive([msgspec.msgpack.encode(late)]) is None
    assert pending.submit([request]) is not None
    assert pending["a"].take() == []


def test_signs_of_life_are_not_answers():
    assert PendingRequests().receive([msgspec.msgpack.encode(Alive())]) is None
