"""Without overlap steps and jobs take turns."""

import pytest
from small_cases import answer, make_scheduler, request, run_step

from zipage.engine_messages import CompressionDone, CompressionJob, JobFailed, SwapDone, SwapIn, SwapOut

SYNCHRONOUS = {"overlap": False, "num_query_slots": 2, "max_blocks_per_request": 3, "max_num_batched_tokens": 200}


@pytest.mark.parametrize("is_failed", [False, True])
def test_nobody_decodes_during_a_compression(is_failed: bool) -> None:
    scheduler = make_scheduler(**SYNCHRONOUS)
    scheduler.add([request(0, 24), request(1, 10)], 0.0)
    run_step(scheduler)
    assert scheduler.plan() is None
    (job,) = scheduler.plan_jobs()
    assert isinstance(job, CompressionJob)
    assert scheduler.plan() is None
    scheduler.finish_job(JobFailed(0, "no memory") if is_failed else CompressionDone(0, 0), 2.0)
    assert [work.row for work in run_step(scheduler).work] == ([1, 2] if is_failed else [0, 1])
    # Only the wait for its own compression is a stall.
    assert [other.stalls.total for other in scheduler.lives.running] == [2.0, 0.0]


def test_a_compression_waits_for_the_steps_that_were_planned_before() -> None:
    scheduler = make_scheduler(**SYNCHRONOUS, max_steps_in_flight=3)
    scheduler.add([request(0, 23), request(1, 10)], 0.0)
    steps = [scheduler.plan(), scheduler.plan()]
    # The second step fills the first request's blocks.
    assert [len(step.work) for step in steps] == [2, 2]
    assert scheduler.plan() is None
    assert scheduler.plan_jobs() == []
    scheduler.finish_step(answer(steps[0], [0, 1]), 0.0)
    assert scheduler.plan() is None
    assert scheduler.plan_jobs() == []
    scheduler.finish_step(answer(steps[1], [0, 1]), 0.0)
    assert scheduler.plan() is None
    assert [job.uid for job in scheduler.plan_jobs()] == [0]


def test_all_compressions_that_are_due_are_done_before_the_next_step() -> None:
    scheduler = make_scheduler(**SYNCHRONOUS)
    scheduler.add([request(0, 24), request(1, 24)], 0.0)
    run_step(scheduler)
    assert scheduler.plan() is None
    assert [job.uid for job in scheduler.plan_jobs()] == [0, 1]
    scheduler.finish_job(CompressionDone(1, 0), 0.0)
    assert scheduler.plan() is None
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    assert len(run_step(scheduler).work) == 2


def test_swaps_take_turns_with_steps_too() -> None:
    scheduler = make_scheduler(**SYNCHRONOUS, num_host_blocks=3, num_host_slots=1)
    scheduler.add([request(0, 24), request(1, 10)], 0.0)
    run_step(scheduler)
    assert scheduler.plan() is None
    assert scheduler.plan_jobs()
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    scheduler.preempt([0])
    # Who is preempted is known when a step is planned, which goes first.
    step = scheduler.plan()
    assert [work.row for work in step.work] == [1]
    assert scheduler.plan_jobs() == []
    scheduler.finish_step(answer(step, [1]), 0.0)
    assert scheduler.plan() is None
    (out,) = scheduler.plan_jobs()
    assert isinstance(out, SwapOut)
    scheduler.finish_job(SwapDone(0), 0.0)
    run_step(scheduler)
    assert scheduler.plan() is None
    (back,) = scheduler.plan_jobs()
    assert isinstance(back, SwapIn)
    scheduler.finish_job(SwapDone(0), 0.0)
    assert len(run_step(scheduler).work) == 2
