"""What the scheduler does when a worker has died and another one has come, in cases small enough to state in full."""

import pytest
from small_cases import answer, jobs_of, make_scheduler, request, run_step

from zipage.engine_messages import CompressionDone, Job, Step, SwapDone, SwapIn, SwapOut
from zipage.scheduling.recovery import MAX_JOB_SENDS, MAX_LOST_STEPS
from zipage.scheduling.scheduler import MAX_FAILED_JOBS, Scheduler

BUDGET = {"num_query_slots": 2, "max_blocks_per_request": 3}
SHADOW = {**BUDGET, "max_shadow_blocks": 4, "max_steps_in_flight": 1}
HOST = {**BUDGET, "num_host_blocks": 8, "num_host_slots": 2}


def start_over(scheduler: Scheduler, **limits) -> dict[int, str]:
    """A decode worker comes again, perhaps with other limits; returns why requests have ended."""
    ends = scheduler.start_over(make_scheduler(**limits).limits, 7.0)
    assert scheduler.resend_jobs([], 7.0) == []
    assert scheduler.integrity_errors() == []
    assert all(end.token is None and end.metrics.finished == 7.0 for end in ends)
    return {end.uid: end.finish_reason for end in ends}


def known_tokens(step: Step) -> list[list[int]]:
    return [admission.token_ids for admission in step.admissions]


def until_job(scheduler: Scheduler) -> Job:
    """Run on until a job is sent, while the steps before it have returned."""
    while True:
        step = scheduler.plan()
        jobs = scheduler.plan_jobs()
        if step is not None:
            scheduler.finish_step(answer(step, [work.row for work in step.work]), 0.0)
        if jobs:
            (job,) = jobs
            return job


def at_first_job(**limits) -> tuple[Scheduler, Job]:
    """A scheduler whose one request is being compressed."""
    scheduler = make_scheduler(**limits)
    scheduler.add([request(0, 20)], 0.0)
    return scheduler, until_job(scheduler)


# ---- the decode worker ----------------------------------------------------------------------------------------------


def test_running_requests_go_on_from_their_tokens_in_their_old_order() -> None:
    scheduler = make_scheduler(max_num_seqs=2, max_steps_in_flight=2)
    scheduler.add([request(0, 4), request(1, 6), request(2, 5), request(3, 3, priority=-1)], 0.0)
    scheduler.abort([3], 0.0)
    first, second = scheduler.plan(), scheduler.plan()
    scheduler.finish_step(answer(first, [0, 1]), 0.0)
    assert len(second.work) == 2
    assert start_over(scheduler, max_num_seqs=2, max_steps_in_flight=2) == {}
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.counters.preemptions) == (0, 3, 2)
    step = scheduler.plan()
    # The token of the first step stays, that of the second is sampled again.
    assert known_tokens(step) == [[10, 11, 12, 13, 5], [10, 11, 12, 13, 14, 15, 5]]
    assert [admission.prompt_length for admission in step.admissions] == [4, 6]
    assert step.step_id == 2
    assert step.released_rows == []
    outputs = scheduler.finish_step(answer(step, [0, 1], token=8), 0.0)
    assert [(output.uid, output.token.token_id) for output in outputs] == [(0, 8), (1, 8)]


def test_a_prompt_in_its_middle_is_computed_from_its_beginning() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10)
    scheduler.add([request(0, 24)], 0.0)
    scheduler.finish_step(answer(scheduler.plan(), []), 0.0)
    scheduler.plan()
    start_over(scheduler, max_num_batched_tokens=10)
    step = scheduler.plan()
    assert (step.admissions[0].position, step.work[0].num_tokens) == (0, 10)


def test_what_has_ended_is_gone_with_the_old_pool() -> None:
    scheduler = make_scheduler(max_steps_in_flight=2)
    scheduler.add([request(0, 4)], 0.0)
    first, _ = scheduler.plan(), scheduler.plan()
    (end,) = scheduler.finish_step(answer(first, [0], token=2), 0.0)
    assert end.finish_reason == "stop"
    assert not scheduler.is_idle
    assert start_over(scheduler) == {}
    assert scheduler.is_idle


def test_a_compressed_request_goes_on_as_one_long_prompt() -> None:
    scheduler, _ = at_first_job(**BUDGET)
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    assert until_job(scheduler).num_survivors == 16
    assert scheduler.num_compressing == 1
    start_over(scheduler, **BUDGET)
    (prompt,) = known_tokens(run_step(scheduler))
    # 24 entries before the first compression and 8 behind its survivors, and the token that has no entry.
    assert len(prompt) == 24 + 8 + 1
    assert scheduler.lives.running.first.prefill_length == 24 + 8 + 1


@pytest.mark.parametrize("num_swaps_done", [0, 1])
def test_a_swapped_request_is_computed_again(num_swaps_done: int) -> None:
    scheduler, _ = at_first_job(**HOST)
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    scheduler.preempt([0])
    (job,) = jobs_of(scheduler)
    assert isinstance(job, SwapOut)
    if num_swaps_done:
        scheduler.finish_job(SwapDone(0), 0.0)
        (job,) = jobs_of(scheduler)
        assert isinstance(job, SwapIn)
    start_over(scheduler, **HOST)
    assert (scheduler.num_swapped, scheduler.num_waiting) == (0, 1)
    # It was preempted once, by the swap.
    assert scheduler.counters.preemptions == 1
    assert scheduler.holdings.host_blocks.num_used == 0
    (prompt,) = known_tokens(run_step(scheduler))
    assert len(prompt) == 24 + 1


def test_old_and_new_requests_share_prefixes_in_the_new_pool() -> None:
    scheduler = make_scheduler(prefix_caching=True)
    scheduler.add([request(0, 20)], 0.0)
    run_step(scheduler)
    start_over(scheduler, prefix_caching=True)
    scheduler.add([request(1, 20)], 0.0)
    step = scheduler.plan()
    assert [admission.position for admission in step.admissions] == [0, 16]


def test_requests_that_do_not_fit_into_a_smaller_pool_end_with_an_error() -> None:
    options = {**BUDGET, "max_num_batched_tokens": 400, "max_num_seqs": 5}
    scheduler = make_scheduler(**options, num_blocks=200)
    scheduler.add(
        [
            request(0, 100, kv_budget=0),
            request(1, 20, kv_budget=0),
            request(2, 20, kv_budget=120),
            request(3, 100),
            request(4, 63, kv_budget=0),
        ],
        0.0,
    )
    for _ in range(3):
        run_step(scheduler)
    # 64 entries: one prompt is too long, one budget too large, and one sequence has grown too long.
    assert start_over(scheduler, **options, num_blocks=8) == {0: "error", 2: "error", 4: "error"}
    assert {uid: other.max_length for uid, other in scheduler.lives.unfinished.items()} == {1: 64 + 1, 3: 1000}
    assert [len(tokens) for tokens in known_tokens(scheduler.plan())] == [20 + 3]


def test_a_request_that_was_in_too_many_lost_steps_ends_with_an_error() -> None:
    scheduler = make_scheduler(max_num_seqs=1, max_steps_in_flight=2)
    scheduler.add([request(0, 4), request(1, 4)], 0.0)
    for _ in range(MAX_LOST_STEPS):
        # Two steps with it are lost at a time, which counts once.
        assert None not in (scheduler.plan(), scheduler.plan())
        assert start_over(scheduler, max_num_seqs=1, max_steps_in_flight=2) == {}
    # A worker that dies without a step accuses nobody.
    assert start_over(scheduler, max_num_seqs=1, max_steps_in_flight=2) == {}
    scheduler.plan()
    assert start_over(scheduler, max_num_seqs=1, max_steps_in_flight=2) == {0: "error"}
    assert scheduler.counters.preemptions == MAX_LOST_STEPS + 1
    assert known_tokens(scheduler.plan()) == [[10, 11, 12, 13]]
    assert scheduler.lives.running.first.uid == 1


def test_while_no_worker_is_there_requests_come_and_go() -> None:
    scheduler = make_scheduler(max_waiting=1, max_num_seqs=2)
    scheduler.add([request(0, 4), request(1, 4)], 0.0)
    scheduler.plan()
    # Nothing returns any more.
    assert scheduler.plan() is None
    refused = scheduler.add([request(2, 4, deadline=1.0), request(3, 4)], 0.0)
    assert [refusal.uid for refusal in refused] == [3]
    assert [output.uid for output in scheduler.abort([0], 0.5)] == [0]
    assert [(output.uid, output.finish_reason) for output in scheduler.expire(2.0)] == [(2, "deadline")]
    assert start_over(scheduler, max_waiting=1, max_num_seqs=2) == {}
    assert scheduler.num_waiting == 1
    assert scheduler.expire(3.0) == []
    assert len(scheduler.plan().work) == 1


# ---- the compression worker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [BUDGET, SHADOW], ids=["stall", "shadow"])
def test_a_job_without_an_answer_is_sent_again(limits: dict[str, int]) -> None:
    scheduler, job = at_first_job(**limits)
    assert scheduler.plan_jobs() == []
    # Only jobs in place can have been left undefined.
    assert scheduler.resend_jobs([0, 5] if limits is SHADOW else [5], 0.0) == []
    assert scheduler.plan_jobs() == [job]
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    assert scheduler.resend_jobs([], 0.0) == []
    assert scheduler.plan_jobs() == []
    assert scheduler.counters.failed_jobs == 0
    assert run_step(scheduler).table_updates[0].block_table[:2] == job.target_blocks


@pytest.mark.parametrize("kind", [SwapOut, SwapIn])
def test_a_swap_without_an_answer_is_sent_again(kind: type) -> None:
    scheduler, _ = at_first_job(**HOST)
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    scheduler.preempt([0])
    (job,) = jobs_of(scheduler)
    if kind is SwapIn:
        scheduler.finish_job(SwapDone(0), 0.0)
        (job,) = jobs_of(scheduler)
    assert isinstance(job, kind)
    assert scheduler.resend_jobs([0], 0.0) == []
    assert jobs_of(scheduler) == [job]


def test_a_stall_job_that_was_begun_has_failed() -> None:
    scheduler, _ = at_first_job(**BUDGET)
    assert scheduler.resend_jobs([0], 0.0) == []
    assert scheduler.plan_jobs() == []
    assert scheduler.counters.failed_jobs == 1
    step = scheduler.plan()
    assert (step.admissions[0].position, len(step.admissions[0].token_ids)) == (0, 25)


def test_a_job_that_no_worker_survives_fails_and_then_ends_its_request() -> None:
    scheduler, _ = at_first_job(**SHADOW)
    for failures in range(1, MAX_FAILED_JOBS + 2):
        for sends in range(1, MAX_JOB_SENDS + 1):
            ends = scheduler.resend_jobs([], 3.0)
            assert scheduler.counters.failed_jobs == failures - (sends < MAX_JOB_SENDS)
            assert len(scheduler.plan_jobs()) == (sends < MAX_JOB_SENDS)
        if failures <= MAX_FAILED_JOBS:
            assert ends == []
            until_job(scheduler)
    assert [(end.uid, end.finish_reason) for end in ends] == [(0, "error")]
    assert scheduler.is_idle


def test_without_a_compression_worker_the_others_go_on() -> None:
    scheduler, job = at_first_job(**BUDGET, max_num_seqs=3)
    scheduler.add([request(1, 4, kv_budget=0)], 0.0)
    for _ in range(10):
        assert len(run_step(scheduler).work) == 1
    assert scheduler.num_compressing == 1
    scheduler.resend_jobs([], 0.0)
    assert scheduler.plan_jobs() == [job]


def test_what_an_ended_request_held_is_free_once_its_worker_is_gone() -> None:
    scheduler, _ = at_first_job(**BUDGET)
    scheduler.abort([0], 0.0)
    assert scheduler.holdings.blocks.num_used
    # Its job has not failed; nobody wants it any more.
    assert scheduler.resend_jobs([0], 0.0) == []
    assert scheduler.is_idle
    assert scheduler.plan_jobs() == []
    assert (scheduler.holdings.blocks.num_used, scheduler.counters.failed_jobs) == (0, 0)


def test_a_job_that_waits_is_dropped_with_its_request() -> None:
    scheduler, _ = at_first_job(**BUDGET)
    scheduler.resend_jobs([], 0.0)
    scheduler.abort([0], 0.0)
    assert scheduler.plan_jobs() == []
    assert scheduler.is_idle
