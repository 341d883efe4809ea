"""The asyncio client against a fake engine."""

import asyncio
import contextlib

import pytest
from fake_engine import QUEUE_FULL, FakeEngine
from process_helpers import wait_until

from zipage.client import AsyncClient
from zipage.errors import EngineError, InvalidRequestError
from zipage.messages import GenerationRequest
from zipage.sampling_params import SamplingParams


@pytest.fixture
def engine(tmp_path):
    with FakeEngine(f"ipc://{tmp_path}/engine") as engine:
        yield engine


def with_client(engine, work, **options):
    """Run `work(client)` in an event loop."""

    async def run():
        async with AsyncClient(engine.address, **options) as client:
            return await asyncio.wait_for(work(client), 20)

    return asyncio.run(run())


def test_generate_and_chat_answer_in_order(engine):
    async def work(client):
        assert [result.text for result in await client.generate(["a", [1, 2]])] == ["A", "1 2"]
        assert (await client.chat([{"role": "user", "content": "x"}]))[0].text == "USER:X"
        assert await client.generate([]) == []

    with_client(engine, work)
    assert [len(submit.requests) for submit in engine.submits] == [2, 1]


def test_refusals(engine):
    async def work(client):
        assert [result.error is None for result in await client.generate(["a", "refuse", "\ud800"])] == [
            True,
            False,
            False,
        ]
        with pytest.raises(InvalidRequestError, match="shorter"):
            await client.generate("refuse")
        with pytest.raises(InvalidRequestError, match="shorter"):
            await anext(client.stream("refuse"))

    with_client(engine, work)


def test_priority_and_deadline_reach_the_engine(engine):
    params = SamplingParams(priority=100, deadline=2)

    async def work(client):
        await client.generate("a", params)
        await client.chat([{"role": "user", "content": "x"}], params)
        async for _ in client.stream("a", params):
            pass

    with_client(engine, work)
    assert [(each.sampling.priority, each.sampling.deadline) for each in engine.requests] == [(100, 2.0)] * 3


@pytest.mark.parametrize("reason", ["abort", "deadline", "error"])
def test_what_was_cut_short_has_its_text_and_says_why(engine, reason):
    async def work(client):
        [result] = await client.generate(f"{reason} b")
        assert (result.text, result.completions[0].finish_reason) == (f"{reason.upper()} B", reason)
        outputs = [output async for output in client.stream(f"{reason} b")]
        assert [output.finish_reason for output in outputs] == [None, None, reason]

    with_client(engine, work)


def test_a_full_engine_refuses_with_its_own_words(engine):
    async def work(client):
        results = await client.generate(["a", "full"])
        assert (str(results[1].error), results[1].error.field) == (QUEUE_FULL, None)
        with pytest.raises(InvalidRequestError, match="max_waiting lets 0 to 4 do so"):
            await client.generate("full")
        with pytest.raises(InvalidRequestError, match="max_waiting"):
            await anext(client.stream("full"))

    with_client(engine, work)


def test_many_tasks_share_a_client(engine):
    async def text_of(client, prompt):
        return "".join([output.text async for output in client.stream(prompt)])

    async def work(client):
        texts = await asyncio.gather(*(text_of(client, f"a {number}") for number in range(50)))
        assert texts == [f"A {number}" for number in range(50)]

    with_client(engine, work)


def test_closing_a_stream_early_aborts_it(engine):
    async def work(client):
        async with contextlib.aclosing(client.stream("hang")) as stream:
            async for output in stream:
                assert output.text == "HANG"
                break
        assert await asyncio.to_thread(wait_until, lambda: engine.aborted)
        assert (await client.status()).blocks_total == 100

    with_client(engine, work)
    assert engine.aborted == [engine.requests[0].request_id]


def test_a_cancelled_task_aborts_its_requests(engine):
    async def work(client):
        task = asyncio.create_task(client.generate(["hang", "hang"]))
        assert await asyncio.to_thread(wait_until, lambda: engine.submits)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(wait_until, lambda: len(engine.aborted) == 2)

    with_client(engine, work)


def test_abort_ends_a_submitted_request(engine):
    async def work(client):
        await client.submit([GenerationRequest(request_id="x", prompt="hang")])
        await client.abort(["x"])
        assert (await client.wait("x")).completions[0].finish_reason == "abort"

    with_client(engine, work)


def test_closing_wakes_those_who_wait(engine):
    async def work(client):
        task = asyncio.create_task(client.generate("hang"))
        assert await asyncio.to_thread(wait_until, lambda: engine.submits)
        await client.close()
        with pytest.raises(EngineError, match="client is closed"):
            await task
        with pytest.raises(EngineError, match="client is closed"):
            await client.generate("a")

    with_client(engine, work)
    assert wait_until(lambda: len(engine.aborted) == 1)


def test_a_silent_engine_is_an_error_for_every_task(engine):
    engine.silent = True

    async def work(client):
        calls = [client.generate("a"), client.status(), anext(client.stream("b"))]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert ["no answer from an engine" in str(error) for error in errors] == [True] * 3
        with pytest.raises(EngineError, match="no answer"):
            await client.generate("a")

    with_client(engine, work, timeout=0.3)


def test_an_engine_that_answers_status_is_waited_for(engine):
    engine.release_at = 10

    async def work(client):
        assert (await client.generate("hang"))[0].completions[0].finish_reason == "length"

    with_client(engine, work, timeout=0.4)


def test_check_explains_why_the_engine_went_away(engine):
    def check():
        if engine.submits:
            raise EngineError("scheduler ended")

    async def work(client):
        with pytest.raises(EngineError, match="scheduler ended"):
            await client.generate("hang")

    with_client(engine, work, check=check)


def test_a_malformed_answer_is_an_error(engine):
    async def work(client):
        with pytest.raises(EngineError, match="malformed answer"):
            await client.generate("garbage")

    with_client(engine, work)


def test_nobody_at_the_address_is_an_error_that_names_it(tmp_path):
    with pytest.raises(EngineError, match=r"no engine listens at .*/nobody"):
        AsyncClient(f"ipc://{tmp_path}/nobody")
