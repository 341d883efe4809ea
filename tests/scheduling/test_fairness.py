"""Priority classes, deadlines and the bound on waiting requests."""

from small_cases import answer, jobs_of, make_scheduler, request, run_step

from zipage.messages import CompressionDone, SwapDone, SwapIn, SwapOut
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
    assert (out.block_table, out.query_buffer) == ([0, 1, 2], 1)
    assert scheduler.num_swapped == 1
    scheduler.finish_job(SwapDone(0), 0.0)
    assert running(scheduler) == []
    for _ in range(3):
        run_step(scheduler)
    (back,) = jobs_of(scheduler)
    assert isinstance(back, SwapIn)
    assert (back.host_blocks, back.host_slot, back.query_buffer) == (out.host_blocks, out.host_slot, 1)
    scheduler.finish_job(SwapDone(0), 0.0)
    step = scheduler.plan()
    assert (step.admissions[0].position, step.admissions[0].resident_length) == (25, 17)
    assert step.admissions[0].block_table == back.block_table
    (recording,) = step.recording_updates
    assert (recording.query_buffer, recording.interval_start) == (1, 24)
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
    try:
        line.remove(first)
    except ValueError as error:
        assert "not in the line" in str(error)
    else:
        raise AssertionError("a request was removed twice")
