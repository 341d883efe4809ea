"""What the scheduler decides in cases small enough to state in full."""

import pytest
from small_cases import answer, jobs_of, make_scheduler, request

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionDone, Step, SwapDone, SwapIn, SwapOut, TokenRequest
from zipage.sampling_params import SamplingParams
from zipage.scheduling.id_pool import IdPool
from zipage.scheduling.request import IllegalTransitionError, Request, RequestState
from zipage.scheduling.scheduler import Scheduler


def test_prefill_is_chunked_and_mixed_with_decode() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10)
    scheduler.add([request(0, 8), request(1, 15)], 0.0)
    first = scheduler.plan()
    assert [(work.row, work.num_tokens) for work in first.work] == [(0, 8), (1, 2)]
    assert scheduler.plan() is None
    scheduler.finish_step(answer(first, [0]), 0.0)
    second = scheduler.plan()
    assert [(work.row, work.num_tokens) for work in second.work] == [(0, 1), (1, 9)]
    scheduler.finish_step(answer(second, [0]), 0.0)
    assert [(work.row, work.num_tokens) for work in scheduler.plan().work] == [(0, 1), (1, 4)]


def test_the_next_step_is_planned_before_the_tokens_are_back() -> None:
    scheduler = make_scheduler(max_steps_in_flight=2)
    scheduler.add([request(0, 8)], 0.0)
    first, second = scheduler.plan(), scheduler.plan()
    assert [(work.row, work.num_tokens) for work in second.work] == [(0, 1)]
    assert scheduler.plan() is None
    scheduler.finish_step(answer(first, [0]), 0.0)
    third = scheduler.plan()
    (ended,) = scheduler.finish_step(answer(second, [0], token=2), 0.0)
    assert (ended.finish_reason, ended.metrics.output_tokens) == ("stop", 2)
    # The third step computes a token for nothing; until it returns its blocks are not free.
    assert scheduler.holdings.blocks.num_used == 2
    assert scheduler.finish_step(answer(third, [0], token=6), 0.0) == []
    assert scheduler.is_idle


def test_no_step_is_planned_past_the_last_token() -> None:
    scheduler = make_scheduler(max_steps_in_flight=3)
    scheduler.add([request(0, 8, max_tokens=2)], 0.0)
    assert scheduler.plan() is not None
    assert scheduler.plan() is not None
    assert scheduler.plan() is None


def test_the_first_of_the_queue_is_never_overtaken() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add([request(0, 20), request(1, 20), request(2, 4)], 0.0)
    step = scheduler.plan()
    assert [admission.row for admission in step.admissions] == [0]
    assert scheduler.num_waiting == 2


def until_preempted(scheduler: Scheduler) -> Step:
    """Run on until a request is preempted; returns the step, which is in flight, that takes its blocks."""
    while True:
        step = scheduler.plan()
        if scheduler.counters.preemptions:
            return step
        scheduler.finish_step(answer(step, [work.row for work in step.work]), 0.0)


def test_the_newest_is_preempted_and_recomputed_from_its_tokens() -> None:
    scheduler = make_scheduler(num_blocks=5)
    scheduler.add([request(0, 16), request(1, 16)], 0.0)
    # Request 0 takes the fifth block and eight tokens later the first of request 1, which waited for one.
    step = until_preempted(scheduler)
    assert [work.row for work in step.work] == [0]
    assert step.released_rows == [1]
    (output,) = scheduler.finish_step(answer(step, [0], token=2), 0.0)
    assert output.finish_reason == "stop"
    step = scheduler.plan()
    assert step.admissions[0].token_ids == [*range(10, 26), 5]
    assert step.admissions[0].prompt_length == 16


def test_nobody_is_admitted_to_the_last_blocks_of_others() -> None:
    scheduler = make_scheduler(num_blocks=5)
    scheduler.add([request(0, 24), request(1, 16)], 0.0)
    # Two blocks are free, as many as request 1 has tokens for, but request 0 will soon want one.
    assert [admission.row for admission in scheduler.plan().admissions] == [0]


def compressed_request(**overrides) -> Scheduler:
    """A scheduler whose request 0 has been compressed once, in stall mode, and has one step in flight."""
    options = {"num_query_slots": 2, "max_blocks_per_request": 3, "num_host_blocks": 8, "num_host_slots": 2}
    scheduler = make_scheduler(**{**options, **overrides})
    scheduler.add([request(0, 24)], 0.0)
    scheduler.finish_step(answer(scheduler.plan(), [0]), 0.0)
    assert jobs_of(scheduler)
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    return scheduler


def test_a_row_that_the_decode_worker_never_saw_is_not_released() -> None:
    scheduler = compressed_request()
    step = scheduler.plan()
    scheduler.preempt([0])
    scheduler.finish_step(answer(step, [0]), 0.0)
    # Its row is released and given out again while it swaps, but no step leaves that could say so.
    assert isinstance(jobs_of(scheduler)[0], SwapOut)
    scheduler.finish_job(SwapDone(0), 0.0)
    assert isinstance(jobs_of(scheduler)[0], SwapIn)
    scheduler.abort([0], 0.0)
    scheduler.finish_job(SwapDone(0), 0.0)
    scheduler.add([request(1, 8)], 0.0)
    assert scheduler.plan().released_rows == [0]


def test_a_request_is_compressed_when_its_last_block_is_full() -> None:
    scheduler = make_scheduler(num_query_slots=2, max_blocks_per_request=3)
    scheduler.add([request(0, 22)], 0.0)
    jobs = []
    steps = 0
    while not jobs:
        step = scheduler.plan()
        scheduler.finish_step(answer(step, [0]), 0.0)
        steps += 1
        jobs = [] if steps < 3 else jobs_of(scheduler)
    # 22 prompt tokens and two sampled ones fill three blocks of 8.
    assert steps == 3
    (job,) = jobs
    assert (job.num_entries, job.keep, job.num_survivors) == (24, 16, 0)
    assert job.target_blocks == job.block_table[:2]
    # The last 4 queries of the prompt and the two after it.
    assert job.num_observed == 6
    assert scheduler.plan() is None
    assert scheduler.num_compressing == 1
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    step = scheduler.plan()
    assert step.table_updates[0].block_table == job.block_table
    # The next interval is recorded where the last one was.
    assert (step.recording_updates[0].query_buffer, step.recording_updates[0].interval_start) == (0, 24)
    assert step.table_updates[0].resident_length == 16
    assert step.work[0].new_blocks == []


def test_a_long_prompt_gives_back_the_blocks_beyond_its_budget() -> None:
    scheduler = make_scheduler(num_query_slots=2, max_blocks_per_request=3, max_num_batched_tokens=64)
    scheduler.add([request(0, 48)], 0.0)
    scheduler.finish_step(answer(scheduler.plan(), [0]), 0.0)
    assert jobs_of(scheduler)[0].num_entries == 48
    assert scheduler.holdings.blocks.num_used == 6
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    assert scheduler.holdings.blocks.num_used == 3


def test_aborting_during_a_job_frees_blocks_only_when_it_is_done() -> None:
    scheduler = make_scheduler(num_query_slots=2, max_blocks_per_request=2)
    scheduler.add([request(0, 16)], 0.0)
    scheduler.finish_step(answer(scheduler.plan(), [0]), 0.0)
    assert jobs_of(scheduler)
    (output,) = scheduler.abort([0], 3.0)
    assert (output.finish_reason, output.token, output.metrics.finished) == ("abort", None, 3.0)
    assert scheduler.holdings.blocks.num_used == 2
    assert not scheduler.is_idle
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    assert scheduler.holdings.blocks.num_used == 0
    assert scheduler.holdings.buffers.num_used == 0
    assert scheduler.is_idle


def test_aborting_during_a_step_frees_blocks_only_when_it_returns() -> None:
    scheduler = make_scheduler()
    scheduler.add([request(0, 16)], 0.0)
    step = scheduler.plan()
    scheduler.abort([0, 7], 0.0)
    assert scheduler.holdings.blocks.num_used == 2
    assert scheduler.finish_step(answer(step, [0]), 0.0) == []
    assert scheduler.holdings.blocks.num_used == 0
    assert scheduler.is_idle


@pytest.mark.parametrize(
    ("prompt", "pool_blocks", "words"),
    [(999, 200, None), (1000, 200, "max_model_len 1000"), (129, 16, "KV cache holds 1 to 128"), (128, 16, None)],
)
def test_a_prompt_that_can_never_run_is_refused_at_once(prompt: int, pool_blocks: int, words: str | None) -> None:
    scheduler = make_scheduler(num_blocks=pool_blocks)
    refused = scheduler.add([request(0, prompt)], 0.0)
    if words is None:
        assert refused == []
    else:
        assert words in refused[0].message
        assert scheduler.is_idle


@pytest.mark.parametrize(
    ("params", "token", "reason", "stop_token"),
    [
        ({}, 2, "stop", None),
        ({"ignore_eos": True, "max_tokens": 1}, 2, "length", None),
        ({"stop_token_ids": (9,)}, 9, "stop", 9),
        ({"max_tokens": 1}, 5, "length", None),
        ({}, 5, None, None),
    ],
)
def test_endings(params: dict, token: int, reason: str | None, stop_token: int | None) -> None:
    scheduler = make_scheduler()
    scheduler.add([request(0, 4, **params)], 0.0)
    (output,) = scheduler.finish_step(answer(scheduler.plan(), [0], token), 0.0)
    assert (output.finish_reason, output.stop_reason) == (reason, stop_token)


def test_a_sequence_ends_where_the_pool_ends() -> None:
    scheduler = make_scheduler(num_blocks=2)
    scheduler.add([request(0, 15)], 0.0)
    reasons = []
    while not scheduler.is_idle:
        (output,) = scheduler.finish_step(answer(scheduler.plan(), [0]), 0.0)
        reasons.append(output.finish_reason)
    assert reasons == [None, "length"]


def test_slot_holders_can_always_reach_their_budget_together() -> None:
    scheduler = make_scheduler(num_blocks=7, num_query_slots=4, max_blocks_per_request=3, hybrid_scheduling=False)
    scheduler.add([request(uid, 4) for uid in range(4)], 0.0)
    assert len(scheduler.plan().admissions) == 2


def test_an_illegal_transition_raises() -> None:
    message = request(0, 4)
    held = Request.from_message(message, 0, 10, 0, 0.0)
    with pytest.raises(IllegalTransitionError, match="waiting -> finished"):
        held.move_to(RequestState.FINISHED)


def test_a_pool_id_has_one_owner() -> None:
    pool = IdPool("block", 3)
    taken = pool.take(2)
    with pytest.raises(ValueError, match="2 blocks wanted, 1 free"):
        pool.take(2)
    pool.give_back(taken)
    with pytest.raises(ValueError, match="nobody holds"):
        pool.give_back([taken[0]])
    with pytest.raises(ValueError, match="nobody holds"):
        pool.give_back([3])


def test_the_integrity_check_sees_a_leak_and_a_double_owner() -> None:
    scheduler = make_scheduler()
    scheduler.add([request(0, 4), request(1, 4)], 0.0)
    scheduler.plan()
    assert scheduler.integrity_errors() == []
    first, second = scheduler.lives.running
    first.block_table, kept = list(second.block_table), first.block_table
    errors = scheduler.integrity_errors()
    assert any("has 2 holders and 1 references" in error for error in errors)
    assert "1 blocks have holders, and 2 are not free" in errors
    first.block_table = kept
    scheduler.holdings.blocks.give_back(kept)
    assert any("has 1 holders and 0 references" in error for error in scheduler.integrity_errors())
    scheduler.holdings.rows.give_back([first.row])
    assert any("row 0 is held and free" in error for error in scheduler.integrity_errors())
    first.row = second.row
    errors = scheduler.integrity_errors()
    assert "row 1 has 2 owners" in errors


def test_equal_prefixes_share_blocks() -> None:
    scheduler = make_scheduler(prefix_caching=True, max_num_batched_tokens=64)
    scheduler.add([request(0, 20), request(1, 22), request(2, 3)], 0.0)
    step = scheduler.plan()
    first, second, third = step.admissions
    # Two full blocks are the same; the third is not full in either.
    assert (first.position, second.position, third.position) == (0, 16, 0)
    assert second.block_table == step.work[0].new_blocks[:2]
    assert scheduler.holdings.blocks.num_used == 5
    assert scheduler.counters.cached_tokens == 16


def test_the_last_token_is_always_computed() -> None:
    scheduler = make_scheduler(prefix_caching=True, max_num_batched_tokens=64)
    scheduler.add([request(0, 16), request(1, 16)], 0.0)
    assert [admission.position for admission in scheduler.plan().admissions] == [0, 8]


def test_a_prefix_outlives_its_request_until_its_memory_is_wanted() -> None:
    scheduler = make_scheduler(prefix_caching=True, max_num_batched_tokens=200)
    for uid, prompt, cached in ((0, 33, 0), (1, 33, 32)):
        scheduler.add([request(uid, prompt, max_tokens=1)], 0.0)
        step = scheduler.plan()
        assert step.admissions[0].position == cached
        scheduler.finish_step(answer(step, [step.work[0].row]), 0.0)
        assert scheduler.holdings.blocks.num_used == 0
    other = TokenRequest(2, list(range(500, 620)), SamplingParams(max_tokens=1), (2,))
    scheduler.add([other], 0.0)
    step = scheduler.plan()
    scheduler.finish_step(answer(step, [step.work[0].row]), 0.0)
    # 15 blocks were wanted, so all but the first of the prefix's four are gone: its end goes first.
    scheduler.add([request(3, 33)], 0.0)
    assert scheduler.plan().admissions[0].position == 8


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    scheduler = make_scheduler(num_blocks=5, prefix_caching=True, max_num_batched_tokens=64)
    first = TokenRequest(0, list(range(100, 116)), SamplingParams(), (2,))
    scheduler.add([first, request(1, 16)], 0.0)
    step = until_preempted(scheduler)
    scheduler.finish_step(answer(step, [0], token=2), 0.0)
    # Request 0 has taken the second of the two blocks; the first is still there.
    assert scheduler.plan().admissions[0].position == 8


def test_a_shared_block_is_no_target() -> None:
    limits = {"num_query_slots": 2, "max_blocks_per_request": 3, "prefix_caching": True, "max_num_batched_tokens": 64}
    scheduler = make_scheduler(**limits)
    scheduler.add([request(0, 24), request(1, 24)], 0.0)
    step = scheduler.plan()
    # Of the prompt's 24 tokens the last 4 are observed, so two blocks are shared.
    assert [admission.position for admission in step.admissions] == [0, 16]
    scheduler.finish_step(answer(step, [0, 1]), 0.0)
    first, second = jobs_of(scheduler)
    shared = first.block_table[:2]
    assert second.block_table[:2] == shared
    for job in (first, second):
        assert not set(job.target_blocks) & set(shared)
    for uid in (0, 1):
        scheduler.finish_job(CompressionDone(uid, 0), 0.0)
        assert scheduler.integrity_errors() == []
    assert scheduler.holdings.blocks.num_used == 6
    # The prompt's blocks were not written and can be found by a third request.
    scheduler.add([request(2, 24)], 0.0)
    scheduler.abort([0], 0.0)
    assert scheduler.plan().admissions[0].position == 16


def test_compressed_blocks_leave_the_index() -> None:
    limits = {"num_query_slots": 2, "max_blocks_per_request": 3, "prefix_caching": True, "max_num_batched_tokens": 64}
    scheduler = make_scheduler(**limits)
    scheduler.add([request(0, 24)], 0.0)
    scheduler.finish_step(answer(scheduler.plan(), [0]), 0.0)
    (job,) = jobs_of(scheduler)
    assert job.target_blocks == job.block_table[:2]
    scheduler.add([request(1, 24)], 0.0)
    assert scheduler.plan().admissions[0].position == 0


@pytest.mark.parametrize(("observe", "position"), [("last", 24), ("spread", 0)])
def test_observed_queries_are_computed_not_found(observe: str, position: int) -> None:
    scheduler = make_scheduler(
        num_query_slots=2,
        max_blocks_per_request=4,
        prefix_caching=True,
        max_num_batched_tokens=64,
        scoring=ScoringOptions(window=4, observe=observe),
    )
    # They are compressed at 32 entries, so the queries of the last 4 of these are observed.
    scheduler.add([request(0, 29), request(1, 29)], 0.0)
    assert scheduler.plan().admissions[1].position == position


def test_requests_bring_budgets_of_their_own() -> None:
    scheduler = make_scheduler(
        num_blocks=64, num_query_slots=4, max_blocks_per_request=4, max_num_batched_tokens=200, max_model_len=200
    )
    budgets = {0: 16, 1: None, 2: 17, 3: 0}
    scheduler.add([request(uid, 48, kv_budget=budget) for uid, budget in budgets.items()], 0.0)
    scheduler.finish_step(answer(scheduler.plan(), [0, 1, 2, 3]), 0.0)
    scheduler.plan()
    jobs = {job.uid: job.keep for job in scheduler.plan_jobs()}
    # Blocks of 8: 16 tokens are two blocks, 17 three, the engine's budget four; each keeps all but one of them.
    assert jobs == {0: 8, 1: 24, 2: 16}


@pytest.mark.parametrize(
    ("slots", "budget", "words"),
    [
        (0, 64, "kv_budget must be 0, not 64, on an engine without query slots"),
        (0, 0, None),
        (2, 16, "must be 0 or in [17, 128] on this engine, not 16"),
        (2, 17, None),
        (2, 128, None),
        (2, 129, "must be 0 or in [17, 128]"),
    ],
)
def test_a_budget_that_does_not_fit_is_refused(slots: int, budget: int, words: str | None) -> None:
    # 4 sinks and half of 8 kept entries fit; with 8 recent ones two blocks of 8 have to be kept.
    scheduler = make_scheduler(
        num_query_slots=slots, max_blocks_per_request=3 * bool(slots), scoring=ScoringOptions(window=4, recent=8)
    )
    refused = scheduler.add([request(0, 4, kv_budget=budget)], 0.0)
    assert [refusal.field for refusal in refused] == ([] if words is None else ["kv_budget"])
    assert words is None or words in refused[0].message
