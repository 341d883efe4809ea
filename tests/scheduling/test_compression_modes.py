"""Hybrid slots, shadow and stall compression, long prompts and pressure, in cases small enough to state in full."""

import pytest
from small_cases import answer, jobs_of, make_scheduler, request, run_step

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionDone, JobFailed, RowWork
from zipage.scheduling.scheduler import MAX_FAILED_JOBS, Scheduler

ONE_SLOT = {"num_query_slots": 1, "max_blocks_per_request": 3, "max_num_batched_tokens": 200}
SHADOW = {**ONE_SLOT, "max_shadow_blocks": 4}


def states(scheduler: Scheduler) -> dict[int, tuple[int, bool]]:
    """By uid, the position of each running request and whether it is guaranteed."""
    return {other.uid: (other.position, other.is_guaranteed) for other in scheduler.lives.running}


def test_a_request_without_a_slot_runs_until_its_queries_have_to_be_recorded() -> None:
    scheduler = make_scheduler(**ONE_SLOT)
    scheduler.add([request(0, 18, max_tokens=8), request(1, 18)], 0.0)
    for _ in range(3):
        run_step(scheduler)
    # Compressed at 24 entries, the last 4 of whose queries are observed.
    assert states(scheduler) == {0: (20, True), 1: (20, False)}
    step = run_step(scheduler)
    assert [work.row for work in step.work] == [0]
    scheduler.abort([0], 0.0)
    step = run_step(scheduler)
    assert states(scheduler) == {1: (21, True)}
    assert [(update.query_buffer, update.interval_start) for update in step.recording_updates] == [(0, 0)]


def test_spread_queries_need_their_slot_from_the_first_token_on() -> None:
    scheduler = make_scheduler(**ONE_SLOT, scoring=ScoringOptions(window=4, observe="spread"))
    scheduler.add([request(0, 10), request(1, 10)], 0.0)
    run_step(scheduler)
    assert states(scheduler) == {0: (10, True)}


def test_accumulated_attention_needs_no_slot_before_the_compression() -> None:
    scheduler = make_scheduler(**ONE_SLOT, scoring=ScoringOptions(window=4, observe="all"))
    scheduler.add([request(0, 18, max_tokens=8), request(1, 23)], 0.0)
    for _ in range(4):
        run_step(scheduler)
    assert states(scheduler) == {0: (21, True), 1: (24, False)}


def test_a_freed_slot_goes_to_the_oldest_without_one() -> None:
    scheduler = make_scheduler(**ONE_SLOT)
    scheduler.add([request(uid, 18, max_tokens=8) for uid in range(3)], 0.0)
    run_step(scheduler)
    scheduler.abort([0], 0.0)
    run_step(scheduler)
    assert [is_guaranteed for _, is_guaranteed in states(scheduler).values()] == [True, False]


def test_requests_on_spare_blocks_are_preempted_first() -> None:
    scheduler = make_scheduler(**ONE_SLOT, num_blocks=6)
    scheduler.add([request(0, 7), *(request(uid, 7, kv_budget=0, max_tokens=16) for uid in (1, 2))], 0.0)
    # Each needs three blocks, which the last cannot reserve; it leaves one for everyone who runs.
    for _ in range(10):
        run_step(scheduler)
    assert states(scheduler)[0] == (16, True)
    assert scheduler.counters.preemptions == 0
    while not scheduler.counters.preemptions:
        run_step(scheduler)
    assert 2 not in states(scheduler)
    assert states(scheduler)[0] == (17, True)


def test_requests_on_spare_blocks_leave_those_of_shadow_jobs_free() -> None:
    for max_shadow_blocks, num_running in ((0, 2), (4, 2), (5, 1)):
        scheduler = make_scheduler(**ONE_SLOT, num_blocks=9, max_shadow_blocks=max_shadow_blocks)
        scheduler.add([request(0, 10), request(1, 10, kv_budget=0, max_tokens=50)], 0.0)
        run_step(scheduler)
        # Two blocks each, and one for everyone who runs already.
        assert len(states(scheduler)) == num_running


def test_without_hybrid_scheduling_a_request_waits_for_its_slot() -> None:
    scheduler = make_scheduler(**ONE_SLOT, hybrid_scheduling=False)
    scheduler.add([request(0, 10), request(1, 10)], 0.0)
    run_step(scheduler)
    assert states(scheduler) == {0: (10, True)}


def test_in_shadow_mode_a_request_goes_on_behind_its_full_blocks() -> None:
    scheduler = make_scheduler(**SHADOW, max_steps_in_flight=2)
    scheduler.add([request(0, 24)], 0.0)
    first = scheduler.plan()
    second = scheduler.plan()
    table = first.work[0].new_blocks
    # Two blocks for the survivors are taken, and the next token goes to a block of its own.
    assert second.work == [RowWork(0, 1, [5])]
    assert (second.recording_updates[0].query_buffer, second.recording_updates[0].interval_start) == (1, 24)
    assert scheduler.plan_jobs() == []
    scheduler.finish_step(answer(first, [0]), 0.0)
    third = scheduler.plan()
    (job,) = scheduler.plan_jobs()
    assert (job.block_table, job.target_blocks, job.num_entries, job.query_buffer) == (table, [3, 4], 24, 0)
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    # The second and the third step still read the old blocks.
    assert scheduler.holdings.blocks.num_used == 6
    scheduler.finish_step(answer(second, [0]), 0.0)
    fourth = scheduler.plan()
    assert (fourth.table_updates[0].block_table, fourth.table_updates[0].resident_length) == ([3, 4, 5], 16 + 2)
    scheduler.finish_step(answer(third, [0]), 0.0)
    assert scheduler.holdings.blocks.num_used == 3


def test_a_full_tail_waits_for_its_job() -> None:
    scheduler = make_scheduler(**SHADOW)
    scheduler.add([request(0, 24)], 0.0)
    run_step(scheduler)
    for _ in range(8):
        run_step(scheduler)
        scheduler.plan_jobs()
    assert scheduler.plan() is None
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    # Survivors and tail fill the budget, so the next compression begins at once, and the table is told with it.
    step = run_step(scheduler)
    assert step.table_updates[0].resident_length == 24
    assert scheduler.counters.shadow_compressions == 1
    assert len(scheduler.plan_jobs()) == 1


@pytest.mark.parametrize(
    ("changes", "is_shadow"),
    [
        ({}, True),
        ({"max_shadow_blocks": 1}, False),
        # Three of the request's own, two for the survivors, and one for the next token.
        ({"num_blocks": 5}, False),
        ({"num_blocks": 6}, True),
    ],
)
def test_shadow_or_stall_is_chosen_by_free_blocks(changes: dict, is_shadow: bool) -> None:
    scheduler = make_scheduler(**{**SHADOW, **changes})
    scheduler.add([request(0, 24)], 0.0)
    run_step(scheduler)
    assert (scheduler.plan() is not None) == is_shadow
    assert scheduler.num_compressing == (not is_shadow)
    (job,) = scheduler.plan_jobs()
    assert (job.target_blocks == job.block_table[:2]) == (not is_shadow)


@pytest.mark.parametrize(("max_tokens", "is_shadow"), [(7, True), (8, False)])
def test_a_shadow_job_leaves_others_the_blocks_that_they_need_meanwhile(max_tokens: int, is_shadow: bool) -> None:
    scheduler = make_scheduler(**SHADOW, num_blocks=8)
    # The second has room for six more tokens in its two blocks, and does not compute its last one.
    scheduler.add([request(0, 24), request(1, 10, kv_budget=0, max_tokens=max_tokens)], 0.0)
    run_step(scheduler)
    assert [work.row for work in scheduler.plan().work] == ([0, 1] if is_shadow else [1])


def test_a_compression_that_shadow_mode_has_refused_is_done_in_place() -> None:
    scheduler = make_scheduler(**SHADOW, num_blocks=7, max_steps_in_flight=2)
    scheduler.add([request(0, 24), request(1, 16, kv_budget=0, max_tokens=1)], 0.0)
    step = scheduler.plan()
    assert scheduler.plan() is None
    # There are blocks enough from here on, but the request has begun to wait.
    scheduler.finish_step(answer(step, [0, 1]), 2.0)
    assert scheduler.holdings.blocks.num_free == 4
    (job,) = jobs_of(scheduler)
    assert job.is_in_place
    scheduler.finish_job(CompressionDone(0, 0), 3.0)
    for _ in range(8):
        run_step(scheduler)
    # The next compression is decided anew.
    run_step(scheduler)
    (job,) = scheduler.plan_jobs()
    assert not job.is_in_place
    metrics = scheduler.abort([0], 4.0)[0].metrics
    assert (metrics.stalled, metrics.shadow_stalled) == (3.0, 0.0)


def test_shadow_jobs_together_stay_under_their_cap() -> None:
    scheduler = make_scheduler(
        num_blocks=40, num_query_slots=4, max_blocks_per_request=3, max_shadow_blocks=5, max_num_batched_tokens=200
    )
    scheduler.add([request(uid, 24) for uid in range(4)], 0.0)
    run_step(scheduler)
    assert [work.row for work in scheduler.plan().work] == [0, 1]
    assert scheduler.num_compressing == 2


@pytest.mark.parametrize(("num_spare", "num_shadow"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_every_shadow_job_has_a_spare_query_buffer(num_spare: int, num_shadow: int) -> None:
    scheduler = make_scheduler(
        num_blocks=40,
        num_query_slots=2,
        num_query_buffers=2 + num_spare,
        max_blocks_per_request=3,
        max_shadow_blocks=20,
        max_num_batched_tokens=200,
    )
    scheduler.add([request(uid, 24) for uid in range(2)], 0.0)
    run_step(scheduler)
    step = scheduler.plan()
    assert ([work.row for work in step.work] if step is not None else []) == list(range(num_shadow))
    assert scheduler.num_compressing == 2 - num_shadow
    assert [job.query_buffer for job in scheduler.plan_jobs()] == [0, 1]
    assert (scheduler.holdings.slots_used, scheduler.holdings.buffers.num_used) == (2, 2 + num_shadow)
    for uid in range(2):
        scheduler.finish_job(CompressionDone(uid, 0), 0.0)
    assert (scheduler.holdings.slots_used, scheduler.holdings.buffers.num_used) == (2, 2)
    assert scheduler.integrity_errors() == []


def test_spare_query_buffers_are_promised_to_nobody() -> None:
    scheduler = make_scheduler(**SHADOW, num_query_buffers=2)
    scheduler.add([request(0, 24, max_tokens=2), request(1, 10)], 0.0)
    run_step(scheduler)
    assert scheduler.holdings.buffers.num_free == 1
    assert states(scheduler) == {0: (24, True), 1: (10, False)}


def test_aborting_during_a_shadow_job_frees_everything_when_both_are_done() -> None:
    scheduler = make_scheduler(**SHADOW)
    scheduler.add([request(0, 24)], 0.0)
    run_step(scheduler)
    step = scheduler.plan()
    assert scheduler.plan_jobs()
    scheduler.abort([0], 0.0)
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    assert (scheduler.holdings.blocks.num_used, scheduler.holdings.buffers.num_used) == (6, 2)
    scheduler.finish_step(answer(step, [0]), 0.0)
    assert scheduler.is_idle
    assert (scheduler.holdings.blocks.num_used, scheduler.holdings.buffers.num_used) == (0, 0)


def test_a_long_prompt_never_holds_more_than_its_budget_and_a_chunk() -> None:
    scheduler = make_scheduler(num_query_slots=1, max_blocks_per_request=3, max_num_batched_tokens=20)
    scheduler.add([request(0, 100)], 0.0)
    compressed_at = []
    while (step := scheduler.plan()) is not None or scheduler.lives.running.first.position < 100:
        if step is not None:
            scheduler.finish_step(answer(step, []), 0.0)
            continue
        (job,) = scheduler.plan_jobs()
        compressed_at.append((scheduler.lives.running.first.position, job.num_entries, job.num_survivors))
        scheduler.finish_job(CompressionDone(0, 0), 0.0)
    # Three blocks and two of a chunk of 20 are full at 40 entries, of which 16 stay.
    assert compressed_at == [(40, 40, 0), (64, 40, 16), (88, 40, 16)]
    assert scheduler.holdings.blocks.peak == 5


def test_a_prompt_longer_than_the_pool_runs_under_a_budget_only() -> None:
    scheduler = make_scheduler(num_query_slots=1, max_blocks_per_request=3, num_blocks=6)
    refused = scheduler.add([request(0, 60), request(1, 60, kv_budget=0)], 0.0)
    assert [(refusal.uid, refusal.field) for refusal in refused] == [(1, "prompt")]


def test_under_pressure_a_request_outgrows_its_budget_until_another_wants_the_blocks() -> None:
    scheduler = make_scheduler(
        compress="pressure", num_query_slots=2, max_blocks_per_request=3, num_blocks=10, max_num_batched_tokens=200
    )
    scheduler.add([request(0, 30)], 0.0)
    for _ in range(20):
        run_step(scheduler)
    assert (states(scheduler), scheduler.counters.compressions) == ({0: (49, True)}, 0)
    scheduler.add([request(1, 30)], 0.0)
    # Seven blocks are taken and four are wanted, which is seen when the next token has been planned.
    run_step(scheduler)
    (job,) = jobs_of(scheduler)
    assert (job.uid, job.num_entries, job.keep) == (0, 50, 16)
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    run_step(scheduler)
    assert states(scheduler) == {0: (51, True), 1: (30, True)}


def test_under_pressure_a_request_alone_compresses_itself_when_the_pool_is_full() -> None:
    scheduler = make_scheduler(compress="pressure", num_query_slots=1, max_blocks_per_request=3, num_blocks=6)
    scheduler.add([request(0, 30)], 0.0)
    while (step := scheduler.plan()) is not None:
        scheduler.finish_step(answer(step, [0]), 0.0)
    assert states(scheduler) == {0: (48, True)}
    assert scheduler.plan_jobs()[0].num_entries == 48


@pytest.mark.parametrize("limits", [ONE_SLOT, SHADOW])
def test_a_failed_compression_is_computed_again_and_in_the_end_an_error(limits: dict) -> None:
    scheduler = make_scheduler(**limits)
    scheduler.add([request(0, 24)], 0.0)
    outputs = []
    for attempt in range(MAX_FAILED_JOBS + 1):
        run_step(scheduler)
        step = scheduler.plan()
        assert scheduler.plan_jobs()
        outputs = scheduler.finish_job(JobFailed(0, "no memory"), 0.0)
        # The job's buffer has come back at once, or does so when the request that has ended is not touched any more.
        assert outputs or scheduler.holdings.buffers.num_used == scheduler.holdings.slots_used
        if step is not None:
            scheduler.finish_step(answer(step, [0]), 0.0)
        assert scheduler.counters.failed_jobs == attempt + 1
        assert scheduler.integrity_errors() == []
    assert [(output.finish_reason, output.metrics.preemptions) for output in outputs] == [("error", MAX_FAILED_JOBS)]
    assert scheduler.is_idle
    assert (scheduler.holdings.blocks.num_used, scheduler.holdings.buffers.num_used) == (0, 0)


def test_a_prompt_that_is_found_again_is_still_pinned() -> None:
    scheduler = make_scheduler(**ONE_SLOT, prefix_caching=True, scoring=ScoringOptions(window=4, pin_share=1.0))
    scheduler.add([request(0, 8)], 0.0)
    for _ in range(10):
        run_step(scheduler)
    scheduler.preempt([0])
    assert run_step(scheduler).admissions[0].position == 16
    while (step := scheduler.plan()) is not None:
        scheduler.finish_step(answer(step, [0]), 0.0)
    assert scheduler.plan_jobs()[0].num_pinned == 8
