"""A real engine whose pool is too small for what it is asked: it waits, swaps, compresses, refuses, and loses nothing.

All answers are those of tasks of the bundled model, known to the last character.
"""

import threading

import pytest
from process_helpers import wait_until

from tools.bundled_task import samples
from zipage import LLM, Client, SamplingParams

GREEDY = SamplingParams(temperature=0.0)
# Answers of some 290 tokens; with a budget of 160 default scoring gives them exactly.
CHARACTERS = 280
BUDGET = 160
# A block of 16 tokens with its scores, and its share of the query slots.
BLOCK_GB = 0.00028


def small_engine(num_blocks: int, **options) -> LLM:
    """An engine whose pool has about `num_blocks` blocks of 16 tokens."""
    return LLM(kv_cache_gb=num_blocks * BLOCK_GB, threads=1, max_num_batched_tokens=64, max_num_seqs=8, **options)


def check_idle(llm: LLM) -> None:
    assert wait_until(lambda: llm.status().blocks_used == 0)
    status = llm.status()
    assert status.integrity_errors == []
    assert (status.running, status.waiting, status.swapped, status.slots_used, status.host_blocks_used) == (0,) * 5


@pytest.mark.parametrize("compress", ["always", "pressure"])
def test_more_than_fits_is_answered_exactly(compress: str) -> None:
    tasks = samples(4, CHARACTERS, seed=21)
    with small_engine(31, kv_budget=BUDGET, compress=compress, shadow_share=0.5) as llm:
        results = llm.chat([task.messages for task in tasks], GREEDY)
        assert [result.text for result in results] == [task.text for task in tasks]
        status = llm.status()
        assert status.compressions > 0
        check_idle(llm)


def test_an_urgent_request_swaps_out_a_compressed_one_which_ends_exactly() -> None:
    patient_task, urgent_task = samples(2, CHARACTERS, seed=22)
    with small_engine(13, kv_budget=BUDGET, max_waiting=5) as llm:
        answers = []

        def wait_patiently() -> None:
            with Client(llm.address) as client:
                answers.extend(client.chat(patient_task.messages, GREEDY))

        patient = threading.Thread(target=wait_patiently, daemon=True)
        patient.start()
        assert wait_until(lambda: llm.status().compressions > 0)
        (urgent,) = llm.chat(urgent_task.messages, SamplingParams(temperature=0.0, priority=-1))
        patient.join(60)
        assert (urgent.text, answers[0].text) == (urgent_task.text, patient_task.text)
        (completion,) = answers[0].completions
        assert completion.metrics.swaps == completion.metrics.preemptions == llm.status().swaps == 1
        assert urgent.completions[0].metrics.finished < completion.metrics.finished
        check_idle(llm)


def test_a_deadline_gives_what_there_is_and_a_full_queue_says_so() -> None:
    (task,) = samples(1, CHARACTERS, seed=23)
    with small_engine(1000, max_waiting=1) as llm:
        # On no machine are so many tokens made in that time.
        params = SamplingParams(temperature=0.0, deadline=0.5, ignore_eos=True, max_tokens=5_000)
        (late,) = llm.chat(task.messages, params)
        assert late.completions[0].finish_reason == "deadline"
        assert len(late.completions[0].token_ids) < 5_000
        assert task.text.startswith(late.text[: len(task.text)])
        results = llm.chat([task.messages] * 12, SamplingParams(temperature=0.0, max_tokens=5))
        refused = [result for result in results if result.error is not None]
        # Eight rows and one that waits.
        assert len(refused) == 3
        assert all("max_waiting" in str(result.error) for result in refused)
        assert all(task.text.startswith(result.text) for result in results if result.error is None)
        check_idle(llm)
