"""The time that requests wait for their compressions, event by event."""

from small_cases import answer, jobs_of, make_scheduler, request, run_step

from zipage.engine_messages import CompressionDone, JobFailed
from zipage.messages import RequestMetrics
from zipage.scheduling.scheduler import Scheduler
from zipage.scheduling.stalls import StallClock

ONE_SLOT = {"num_query_slots": 1, "max_blocks_per_request": 3, "max_num_batched_tokens": 200}
SHADOW = {**ONE_SLOT, "max_shadow_blocks": 4}


def stalls(scheduler: Scheduler, uid: int = 0) -> tuple[float, float]:
    """All stalled seconds of a request that have been counted, and those of shadow compressions."""
    clock = scheduler.lives.unfinished[uid].stalls
    return clock.total, clock.in_shadow


def ended(scheduler: Scheduler, uid: int, now: float) -> RequestMetrics:
    (output,) = scheduler.abort([uid], now)
    assert output.metrics is not None
    return output.metrics


def full_tail(scheduler: Scheduler) -> None:
    """Plan what a request of 24 tokens can do while its shadow job is open; every step takes a second."""
    scheduler.add([request(0, 24)], 0.0)
    for second in range(9):
        step = scheduler.plan()
        scheduler.plan_jobs()
        scheduler.finish_step(answer(step, [0]), second + 1.0)
    assert scheduler.plan() is None


def test_a_stall_is_counted_from_the_plan_that_passes_it_over_to_the_one_that_does_not() -> None:
    clock = StallClock()
    assert clock.end(1.0) == 0.0
    clock.begin(2.0)
    clock.begin(3.0)
    assert clock.end(5.0) == 3.0
    assert clock.end(6.0) == 0.0
    assert (clock.total, clock.in_shadow, clock.since) == (3.0, 0.0, None)


def test_a_stall_over_two_jobs_is_divided_by_their_kinds() -> None:
    clock = StallClock(is_shadow=True)
    clock.begin(2.0)
    assert clock.count(4.0) == 2.0
    clock.is_shadow = False
    assert clock.end(7.0) == 3.0
    assert (clock.total, clock.in_shadow) == (5.0, 2.0)


def test_stall_mode_is_a_stall_from_the_step_before_to_the_step_after() -> None:
    scheduler = make_scheduler(**ONE_SLOT)
    scheduler.add([request(0, 24)], 1.0)
    scheduler.finish_step(answer(scheduler.plan(), [0]), 2.0)
    assert jobs_of(scheduler)
    scheduler.expire(2.5)
    assert scheduler.plan() is None
    scheduler.finish_job(CompressionDone(0, 0), 3.25)
    assert scheduler.plan() is not None
    assert stalls(scheduler) == (1.25, 0.0)
    counters = scheduler.counters
    assert (counters.stalled_seconds, counters.blocks_freed, counters.compressions) == (1.25, 1, 1)


def test_with_planning_ahead_it_begins_while_the_last_step_is_computed() -> None:
    scheduler = make_scheduler(**ONE_SLOT, max_steps_in_flight=2)
    scheduler.add([request(0, 24), request(1, 8, kv_budget=0, max_tokens=20)], 1.0)
    steps = [scheduler.plan(), scheduler.plan()]
    assert [len(step.work) for step in steps] == [2, 1]
    scheduler.finish_step(answer(steps[0], [0, 1]), 2.0)
    third = scheduler.plan()
    assert scheduler.plan_jobs()
    scheduler.finish_job(CompressionDone(0, 0), 2.5)
    # No step can be planned yet.
    assert scheduler.plan() is None
    scheduler.finish_step(answer(steps[1], [1]), 3.0)
    assert [work.row for work in scheduler.plan().work] == [0, 1]
    assert [work.row for work in third.work] == [1]
    assert (stalls(scheduler, 0), stalls(scheduler, 1)) == ((2.0, 0.0), (0.0, 0.0))


def test_a_shadow_job_stalls_once_the_tail_is_full() -> None:
    scheduler = make_scheduler(**SHADOW)
    full_tail(scheduler)
    assert stalls(scheduler) == (0.0, 0.0)
    scheduler.finish_job(CompressionDone(0, 0), 11.0)
    assert scheduler.plan() is not None
    assert stalls(scheduler) == (2.0, 2.0)
    assert scheduler.counters.blocks_freed == 1


def test_a_shadow_job_that_is_done_in_time_stalls_nobody() -> None:
    scheduler = make_scheduler(**SHADOW)
    scheduler.add([request(0, 24)], 0.0)
    run_step(scheduler)
    step = scheduler.plan()
    assert scheduler.plan_jobs()
    scheduler.finish_step(answer(step, [0]), 1.0)
    scheduler.finish_job(CompressionDone(0, 0), 2.0)
    assert scheduler.plan() is not None
    assert scheduler.counters.stalled_seconds == 0.0


def test_a_stall_may_go_on_behind_a_shadow_job() -> None:
    scheduler = make_scheduler(**SHADOW, num_blocks=9)
    full_tail(scheduler)
    # It takes the blocks that the next shadow job would need, or will need them before that is done.
    scheduler.add([request(1, 20, kv_budget=0, max_tokens=6)], 10.0)
    scheduler.finish_step(answer(scheduler.plan(), [1]), 10.5)
    scheduler.finish_job(CompressionDone(0, 0), 11.0)
    step = scheduler.plan()
    assert [work.row for work in step.work] == [1]
    assert (scheduler.num_compressing, len(scheduler.plan_jobs())) == (1, 1)
    scheduler.finish_step(answer(step, [1]), 12.0)
    metrics = ended(scheduler, 0, 14.0)
    assert (metrics.stalled, metrics.shadow_stalled) == (5.0, 2.0)
    assert scheduler.counters.stalled_seconds == 5.0


def test_being_preempted_is_no_stall() -> None:
    scheduler = make_scheduler(**ONE_SLOT)
    scheduler.add([request(0, 24)], 0.0)
    run_step(scheduler)
    assert jobs_of(scheduler)
    scheduler.finish_job(JobFailed(0, "no memory"), 2.0)
    scheduler.expire(9.0)
    assert scheduler.plan() is not None
    assert stalls(scheduler) == (2.0, 0.0)


def test_waiting_for_blocks_is_no_stall() -> None:
    scheduler = make_scheduler(num_blocks=2)
    scheduler.add([request(0, 8), request(1, 8)], 0.0)
    run_step(scheduler)
    scheduler.expire(5.0)
    scheduler.plan()
    scheduler.expire(9.0)
    assert (ended(scheduler, 0, 9.0).stalled, ended(scheduler, 1, 9.0).stalled) == (0.0, 0.0)
