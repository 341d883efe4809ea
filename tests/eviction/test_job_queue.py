"""Which compressions make the next batch."""

from hypothesis import given
from hypothesis import strategies as st

from zipage.engine_messages import CompressionJob
from zipage.eviction.job_queue import MAX_BATCH_JOBS, MAX_BATCH_SECONDS, JobQueue
from zipage.eviction.lengths import length_class


def job(uid: int, in_place: bool = True, num_entries: int = 400) -> CompressionJob:
    return CompressionJob(
        uid=uid,
        block_table=[1, 2, 3],
        target_blocks=[1, 2] if in_place else [8, 9],
        num_entries=num_entries,
        num_survivors=0,
        num_observed=0,
        num_pinned=0,
        query_buffer=0,
        keep=300,
    )


def fast_queue(jobs: list[CompressionJob], batch_entries: int = 10**6) -> JobQueue:
    """One that has learnt that so many entries take as long as a batch may."""
    queue = JobQueue()
    for _ in range(200):
        queue.record(batch_entries, MAX_BATCH_SECONDS)
    for one in jobs:
        queue.add(one)
    return queue


def uids(batch: list[CompressionJob]) -> list[int]:
    return [one.uid for one in batch]


def test_nothing_waits_at_first() -> None:
    assert JobQueue().take_batch() == []
    assert len(JobQueue()) == 0


def test_stalled_requests_come_first_in_batches_of_their_own() -> None:
    queue = fast_queue([job(1, in_place=False), job(2), job(3, in_place=False), job(4)])
    assert len(queue) == 4
    assert uids(queue.take_batch()) == [2, 4]
    assert uids(queue.take_batch()) == [1, 3]
    assert queue.take_batch() == []


def test_a_batch_has_one_class_of_lengths() -> None:
    queue = fast_queue([job(1, num_entries=2304), job(2), job(3, num_entries=2048), job(4, num_entries=2049)])
    assert uids(queue.take_batch()) == [1, 4]
    assert uids(queue.take_batch()) == [2]
    assert uids(queue.take_batch()) == [3]


def test_the_first_batches_are_small() -> None:
    queue = JobQueue()
    for uid in range(3):
        queue.add(job(uid, num_entries=2304))
    assert uids(queue.take_batch()) == [0]


def test_a_batch_ends_before_it_takes_too_long() -> None:
    queue = fast_queue([job(uid) for uid in range(6)], batch_entries=1000)
    assert uids(queue.take_batch()) == [0, 1]
    queue.record(800, 10 * MAX_BATCH_SECONDS)
    assert uids(queue.take_batch()) == [2]


def test_one_slow_batch_is_forgotten() -> None:
    queue = fast_queue([job(uid) for uid in range(6)], batch_entries=1000)
    queue.record(800, 1.0)
    for _ in range(60):
        queue.record(1000, MAX_BATCH_SECONDS)
    assert uids(queue.take_batch()) == [0, 1]


def test_a_long_job_goes_alone() -> None:
    queue = fast_queue([job(1, num_entries=500), job(2, num_entries=500)], batch_entries=400)
    assert uids(queue.take_batch()) == [1]
    assert uids(queue.take_batch()) == [2]


def test_a_batch_has_no_more_jobs_than_a_grid_takes() -> None:
    queue = fast_queue([job(uid) for uid in range(MAX_BATCH_JOBS + 1)])
    assert len(queue.take_batch()) == MAX_BATCH_JOBS
    assert len(queue) == 1


def test_shadow_jobs_do_not_wait_for_ever() -> None:
    queue = fast_queue([job(0, in_place=False)], batch_entries=1)
    taken = []
    for uid in range(1, 50):
        queue.add(job(uid))
        taken += uids(queue.take_batch())
    assert 0 in taken[:10]
    # The others lost one turn to it.
    assert len(queue) == 1


@given(
    jobs=st.lists(st.tuples(st.booleans(), st.sampled_from([300, 900, 5000])), max_size=30),
    batch_entries=st.sampled_from([1, 2000, 20_000]),
    arrivals=st.lists(st.integers(0, 4), max_size=30),
)
def test_every_job_comes_once_and_in_order(
    jobs: list[tuple[bool, int]], batch_entries: int, arrivals: list[int]
) -> None:
    queue = fast_queue([], batch_entries)
    incoming = [job(uid, in_place, num_entries) for uid, (in_place, num_entries) in enumerate(jobs)]
    taken: list[CompressionJob] = []
    for count in [*arrivals, len(incoming)] + [0] * len(jobs):
        for one in incoming[:count]:
            queue.add(one)
        del incoming[:count]
        waiting = len(queue)
        batch = queue.take_batch()
        assert len(queue) == waiting - len(batch)
        assert bool(batch) == bool(waiting)
        assert len({(one.is_in_place, length_class(one.num_entries)) for one in batch}) <= 1
        assert len(batch) <= 1 or sum(one.num_entries for one in batch) <= batch_entries * 1.000001
        taken += batch
    assert sorted(uids(taken)) == list(range(len(jobs)))
    for kind in {(one.is_in_place, length_class(one.num_entries)) for one in taken}:
        in_turn = [one.uid for one in taken if (one.is_in_place, length_class(one.num_entries)) == kind]
        assert in_turn == sorted(in_turn)
