"""Priority classes, deadlines and the bound on waiting requests."""

import pytest
from small_cases import answer, jobs_of, make_scheduler, request, run_step

from zipage.engine_messages import CompressionDone, SwapDone, SwapIn, SwapOut
from zipage.scheduling.request_line import RequestLine
from zipage.scheduling.scheduler import Scheduler


def running(scheduler: Scheduler) -> list[int]:
    return [other.uid for other in scheduler.lives.running]


def test_lower_classes_come_first_and_inside_one_the_first_that_came() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    scheduler.add([request(0, 4, priority=5), request(1, 4), request(2, 4, priority=-5), request(3, 4)], 0.0)
    run_step(scheduler)
    assert running(scheduler) == [2, 1]
    scheduler.abort([2, 1], 0.0)
    run_step(scheduler)
    assert running(scheduler) == [3, 0]


def test_a_request_in_the_queue_keeps_its_place_when_it_is_preempted() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    scheduler.add([request(uid, 4) for uid in range(3)], 0.0)
    run_step(scheduler)
    scheduler.preempt([0])
    run_step(scheduler)
    assert running(scheduler) == [0, 1]


def test_an_urgent_request_displaces_the_last_of_a_lower_class() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    scheduler.add([request(0, 4, priority=1), request(1, 4, priority=1)], 0.0)
    run_step(scheduler)
    scheduler.add([request(2, 4)], 0.0)
    # That it finds no row is seen when the next tokens of the others have been planned.
    run_step(scheduler)
    run_step(scheduler)
    assert running(scheduler) == [2, 0]
    # Its own class is not displaced.
    scheduler.add([request(3, 4, priority=1)], 0.0)
    run_step(scheduler)
    run_step(scheduler)
    assert running(scheduler) == [2, 0]


def test_an_urgent_request_on_spare_blocks_displaces_a_guaranteed_one_when_it_lacks_a_block() -> None:
    scheduler = make_scheduler(num_blocks=5)
    scheduler.add([request(0, 20, priority=1)], 0.0)
    run_step(scheduler)
    scheduler.add([request(1, 7)], 0.0)
    run_step(scheduler)
    assert [other.is_guaranteed for other in scheduler.lives.running] == [False, True]
    while len(running(scheduler)) == 2:
        run_step(scheduler)
    assert running(scheduler) == [1]


def test_a_compressed_request_is_displaced_to_host_memory_and_comes_back() -> None:
    scheduler = make_scheduler(
        num_query_slots=1,
        max_blocks_per_request=3,
        num_blocks=3,
        num_host_blocks=3,
        num_host_slots=1,
        hybrid_scheduling=False,
    )
    scheduler.add([request(0, 24, priority=1)], 0.0)
    run_step(scheduler)
    assert jobs_of(scheduler)
    scheduler.finish_job(CompressionDone(0, 0), 0.0)
    scheduler.add([request(1, 20, max_tokens=3)], 0.0)
    run_step(scheduler)
    (out,) = jobs_of(scheduler)
    assert isinstance(out, SwapOut)
    assert (out.block_table, out.query_buffer) == ([0, 1, 2], 0)
    assert scheduler.num_swapped == 1
    scheduler.finish_job(SwapDone(0), 0.0)
    assert running(scheduler) == []
    for _ in range(3):
        run_step(scheduler)
    (back,) = jobs_of(scheduler)
    assert isinstance(back, SwapIn)
    assert (back.host_blocks, back.host_slot, back.query_buffer) == (out.host_blocks, out.host_slot, 0)
    scheduler.finish_job(SwapDone(0), 0.0)
    step = scheduler.plan()
    assert (step.admissions[0].position, step.admissions[0].resident_length) == (25, 17)
    assert step.admissions[0].block_table == back.block_table
    (recording,) = step.recording_updates
    assert (recording.query_buffer, recording.interval_start) == (0, 24)
    assert [work.num_tokens for work in step.work] == [1]
    assert scheduler.holdings.host_blocks.num_used == 0


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add([request(0, 4, deadline=2.0), request(1, 4, deadline=1.0), request(2, 4)], 10.0)
    step = scheduler.plan()
    assert scheduler.expire(10.9) == []
    (waiting,) = scheduler.expire(11.0)
    assert (waiting.uid, waiting.finish_reason, waiting.metrics.output_tokens) == (1, "deadline", 0)
    scheduler.finish_step(answer(step, [0]), 11.5)
    (ended,) = scheduler.expire(99.0)
    assert (ended.uid, ended.finish_reason, ended.metrics.output_tokens) == (0, "deadline", 1)
    assert scheduler.expire(99.0) == []


def test_a_deadline_of_a_finished_request_ends_nothing() -> None:
    scheduler = make_scheduler()
    scheduler.add([request(0, 4, deadline=1.0, max_tokens=1)], 0.0)
    run_step(scheduler)
    assert scheduler.expire(5.0) == []


def test_more_than_may_wait_are_refused_and_nothing_accepted_is_lost() -> None:
    scheduler = make_scheduler(max_num_seqs=2, max_waiting=3)
    refused = scheduler.add([request(uid, 4, max_tokens=1) for uid in range(7)], 0.0)
    assert [refusal.uid for refusal in refused] == [5, 6]
    assert "max_waiting" in refused[0].message
    run_step(scheduler)
    # Two have ended.
    assert [refusal.uid for refusal in scheduler.add([request(uid, 4) for uid in (7, 8, 9)], 0.0)] == [9]
    assert scheduler.num_waiting == 5


def test_a_line_keeps_its_order_and_knows_its_members() -> None:
    line = RequestLine()
    assert line.first is None
    scheduler = make_scheduler()
    scheduler.add([request(0, 4), request(1, 4), request(2, 4, priority=-1)], 0.0)
    first, second, urgent = (scheduler.lives.unfinished[uid] for uid in range(3))
    for member in (second, first, urgent):
        line.add(member)
    line.remove(first)
    assert (list(line), list(reversed(line)), len(line)) == ([urgent, second], [second, urgent], 2)
    with pytest.raises(ValueError, match="not in the line"):
        line.remove(first)


def test_a_higher_class_is_let_in_while_one_of_a_lower_class_lacks_a_block() -> None:
    scheduler = make_scheduler(num_blocks=9, num_query_slots=2, max_blocks_per_request=3, max_num_batched_tokens=64)

    def go_on() -> None:
        step = scheduler.plan()
        for job in scheduler.plan_jobs():
            scheduler.finish_job(CompressionDone(job.uid, 0), 0.0)
        if step is not None:
            scheduler.finish_step(answer(step, [work.row for work in step.work]), 0.0)

    # One stays at its budget; the other, on spare blocks, soon finds no more of them.
    scheduler.add([request(0, 10, priority=1), request(1, 20, priority=1, kv_budget=0, max_tokens=60)], 0.0)
    for _ in range(60):
        go_on()
    assert scheduler.holdings.blocks.num_free == 0
    scheduler.add([request(2, 4)], 0.0)
    for _ in range(5):
        go_on()
    assert 2 in running(scheduler)


def test_a_preempted_request_that_is_never_compressed_lets_no_more_pass() -> None:
    scheduler = make_scheduler(num_blocks=10, max_num_seqs=8, max_num_batched_tokens=200)
    scheduler.add([request(0, 30, max_tokens=30), request(1, 8, max_tokens=70)], 0.0)
    run_step(scheduler)
    scheduler.preempt([1])
    scheduler.add([request(2, 8, max_tokens=4)], 0.0)
    run_step(scheduler)
    # The second needs 10 blocks to be guaranteed, the third 2.
    guaranteed = {other.uid: other.is_guaranteed for other in scheduler.lives.running}
    assert guaranteed == {0: True, 1: False, 2: False}


def test_an_abort_that_names_a_request_twice_ends_it_once() -> None:
    scheduler = make_scheduler()
    scheduler.add([request(0, 4)], 0.0)
    assert len(scheduler.abort([0, 0], 0.0)) == 1


def test_deadlines_of_ended_requests_are_forgotten() -> None:
    scheduler = make_scheduler()
    for uid in range(500):
        scheduler.add([request(uid, 4, deadline=1e6)], 0.0)
        scheduler.abort([uid], 0.0)
    assert len(scheduler._deadlines) < 100
