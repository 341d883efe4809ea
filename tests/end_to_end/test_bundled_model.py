"""One real engine of five processes on the bundled model, whose answers are known to the last character."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
from process_helpers import wait_until

from tools.bundled_task import UNDER_A_BUDGET, prompt_token_ids, samples
from tools.reasoning.vocabulary import END, TOKEN_IDS
from zipage import LLM, AsyncClient, Client, EngineError, InvalidRequestError, SamplingParams
from zipage.bundled.tasks.example import THINK
from zipage.messages import GenerationRequest, Refused

GREEDY = SamplingParams(temperature=0.0)
BUDGET = 250
BLOCK_SIZE = 16


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(
        kv_budget=BUDGET, block_size=BLOCK_SIZE, max_num_seqs=16, max_num_batched_tokens=64, kv_cache_gb=0.1, threads=1
    ) as engine:
        yield engine


@pytest.fixture(autouse=True)
def everything_is_given_back(llm: LLM) -> Iterator[None]:
    yield
    assert wait_until(lambda: llm.status().blocks_used == 0)
    status = llm.status()
    assert status.integrity_errors == []
    assert (status.running, status.waiting, status.compressing, status.slots_used) == (0, 0, 0, 0)


def test_exact_answers_under_a_budget(llm: LLM) -> None:
    tasks = samples(6, 450, seed=1, families=UNDER_A_BUDGET)
    results = llm.chat([task.messages for task in tasks], GREEDY)
    assert [result.text for result in results] == [task.text for task in tasks]
    for result in results:
        (completion,) = result.completions
        assert completion.finish_reason == "stop"
        assert completion.metrics.compressions > 0
        # One more while it decodes behind a shadow compression.
        assert completion.metrics.peak_blocks <= -(-BUDGET // BLOCK_SIZE) + 1
        assert completion.metrics.output_tokens == len(completion.token_ids)
        assert completion.metrics.arrived < completion.metrics.first_token < completion.metrics.finished


def test_the_effective_budget_is_reported(llm: LLM) -> None:
    status = llm.status()
    assert (status.kv_budget, status.block_size) == (256, 16)


def test_a_stream_is_the_whole_answer_piece_by_piece(llm: LLM) -> None:
    (task,) = samples(1, 150, seed=2)
    pieces = list(llm.stream(task.messages, GREEDY))
    assert "".join(piece.text for piece in pieces) == task.text
    assert len(pieces) > 50
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]


def test_stop_strings_across_tokens(llm: LLM) -> None:
    (task,) = samples(1, 150, seed=3)
    # One character is one token, so every stop string of two or more crosses a boundary.
    stop = task.text[30:34]
    cut = task.text.index(stop)
    (without,) = llm.chat(task.messages, SamplingParams(temperature=0.0, stop=(stop,)))
    (included,) = llm.chat(task.messages, SamplingParams(temperature=0.0, stop=(stop,), include_stop=True))
    assert (without.text, included.text) == (task.text[:cut], task.text[:cut] + stop)
    assert (without.completions[0].finish_reason, without.completions[0].stop_reason) == ("stop", stop)


def test_seeds_fix_completions_whatever_else_runs(llm: LLM) -> None:
    task, other = samples(2, 150, seed=4)
    params = SamplingParams(n=4, temperature=3.0, seed=7, max_tokens=30, ignore_eos=True)
    (alone,) = llm.chat(task.messages, params)
    conversations = [task.messages, other.messages, task.messages]
    beside = llm.chat(conversations, [params, GREEDY, SamplingParams(temperature=3.0, max_tokens=5)])
    texts = [completion.text for completion in alone.completions]
    assert texts == [completion.text for completion in beside[0].completions]
    assert len(set(texts)) > 1


def test_logprobs_and_logit_bias(llm: LLM) -> None:
    (task,) = samples(1, 150, seed=5)
    params = SamplingParams(temperature=0.0, logprobs=2, max_tokens=5, logit_bias={TOKEN_IDS[END]: -100.0})
    (result,) = llm.chat(task.messages, params)
    (completion,) = result.completions
    assert [each.sampled.text for each in completion.logprobs] == [THINK, *task.text.removeprefix(THINK)[:4]]
    for each in completion.logprobs:
        assert len(each.top) == 2
        assert each.sampled.logprob <= each.top[0].logprob <= 0


def test_one_refused_prompt_does_not_disturb_the_others(llm: LLM) -> None:
    (task,) = samples(1, 150, seed=6)
    prompt, too_long = prompt_token_ids(task), [5] * 20_000
    results = llm.generate([prompt, too_long, prompt, [999]], GREEDY)
    assert [results[0].text, results[2].text] == [task.text, task.text]
    assert "max_model_len 8192" in str(results[1].error)
    assert "token id must be in [0, 95]" in str(results[3].error)
    with pytest.raises(InvalidRequestError, match=r"the chat template failed: this model .* takes no system message"):
        llm.chat([{"role": "system", "content": "hi"}, *task.messages])


def test_other_clients_and_abort(llm: LLM) -> None:
    (task,) = samples(1, 150, seed=7)
    endless = SamplingParams(temperature=0.0, ignore_eos=True)
    with Client(llm.address) as client:
        stream = client.stream(task.messages, endless)
        next(stream)
        stream.close()
        assert client.chat(task.messages, GREEDY)[0].text == task.text


@pytest.mark.parametrize("stream", [True, False])
def test_the_requests_of_a_client_that_vanishes_are_aborted(llm: LLM, stream: bool) -> None:
    """Nothing is sent to a request that does not stream until its end, so the engine has to look for its client."""
    endless = SamplingParams(temperature=0.0, ignore_eos=True)
    client = Client(llm.address)
    client.submit([GenerationRequest(request_id="a", prompt="abc", sampling=endless, stream=stream)])
    assert wait_until(lambda: llm.status().running == 1)
    client.close()
    assert wait_until(lambda: llm.status().running == 0, 20)


def test_what_cannot_be_read_is_answered(llm: LLM) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(llm.address)
        for frames in ([b"\xc1 not a message"], [b"two", b"frames"]):
            socket.send_multipart(frames)
            assert socket.poll(20_000)
            answer = msgspec.msgpack.decode(socket.recv(), type=Refused)
            assert answer.request_id == ""
            assert answer.message


def test_clients_of_many_threads(llm: LLM) -> None:
    tasks = samples(8, 150, seed=8)
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        with Client(llm.address) as client:
            texts[number] = client.chat(tasks[number].messages, GREEDY)[0].text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [texts[number] for number in range(len(tasks))] == [task.text for task in tasks]


def test_async_client(llm: LLM) -> None:
    tasks = samples(3, 150, seed=9)

    async def ask() -> list[str]:
        async with AsyncClient(llm.address) as client:
            results = await asyncio.gather(*(client.chat(task.messages, GREEDY) for task in tasks))
        return [result[0].text for result in results]

    assert asyncio.run(ask()) == [task.text for task in tasks]


def test_nobody_listens_at_a_wrong_address(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nobody"):
        Client(f"ipc://{tmp_path}/nobody")
