"""Jobs from the scheduler's messages to the answers: in which order, side by side, and what is noted before."""

import os
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
import torch
from test_job import Case, make_case

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionDone, CompressionJob, JobAnswer, JobFailed, SwapDone, SwapIn, SwapOut
from zipage.eviction import job_runner
from zipage.eviction.job import run_job
from zipage.eviction.job_runner import JobRunner
from zipage.eviction.journal import Journal
from zipage.eviction.lane import Lane
from zipage.execution.host_memory import HostMemory
from zipage.execution.pool import KVPool
from zipage.tracing import Tracer

SCORING = ScoringOptions()
NO_TRACE = Tracer(None, "compression")


class BusyLane(Lane):
    """A lane of a device that is done when a test says so."""

    is_done = False

    def take_answers(self) -> list[JobAnswer]:
        return super().take_answers() if self.is_done else []


class FakeCompressor:
    """Notes what it is to do, with what the journal says at that time."""

    def __init__(self, journal: Journal) -> None:
        self.batches: list[list[int]] = []
        self.noted: list[list[int]] = []
        self._journal = journal

    def run(self, jobs: Sequence[CompressionJob]) -> list[JobAnswer]:
        self.batches.append([job.uid for job in jobs])
        self.noted.append(self._journal.uids)
        return [CompressionDone(job.uid, 0) for job in jobs]


class FakeHostMemory:
    """Has room for the requests below 100."""

    def __init__(self) -> None:
        self.uids: list[int] = []

    def run(self, job: SwapOut | SwapIn) -> None:
        if job.uid >= 100:
            raise MemoryError("no host memory")
        self.uids.append(job.uid)


class Bench:
    """A runner whose parts are watched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lane: type[Lane]) -> None:
        monkeypatch.setattr(job_runner, "Lane", lane)
        self.journal = Journal(None)
        self.host_memory = FakeHostMemory()
        self.runner = JobRunner(make_case(SCORING).pool, SCORING, self.journal, self.host_memory, NO_TRACE, lambda: 0.0)
        self.compressor = self.runner._compressor = FakeCompressor(self.journal)
        # With this clock no batch takes any time, so what has been measured once allows any batch.
        for _ in range(200):
            self.runner._compressions.record(1, 0.0)

    def add(self, *jobs: CompressionJob | SwapOut | SwapIn) -> None:
        for job in jobs:
            self.runner.add(job)

    def let_device_finish(self) -> list[JobAnswer]:
        BusyLane.is_done = True
        answers = self.runner._collect()
        BusyLane.is_done = False
        return answers


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch, BusyLane)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch, Lane)


def stall(uid: int) -> CompressionJob:
    return CompressionJob(uid, [1, 2, 3], [1, 2], 24, 0, 0, 0, 0, 16)


def shadow(uid: int) -> CompressionJob:
    return CompressionJob(uid, [1, 2, 3], [4, 5], 24, 0, 0, 0, 0, 16)


def swap_out(uid: int) -> SwapOut:
    return SwapOut(uid, [1], 0, [1], 0)


def test_jobs_that_come_meanwhile_make_the_next_batch(on_gpu: Bench) -> None:
    on_gpu.add(stall(1))
    assert on_gpu.runner.advance() == []
    on_gpu.add(shadow(2), stall(3), stall(4))
    assert on_gpu.runner.advance() == []
    assert on_gpu.compressor.batches == [[1]]
    assert on_gpu.let_device_finish() == [CompressionDone(1, 0)]
    assert on_gpu.runner.advance() == []
    assert on_gpu.compressor.batches == [[1], [3, 4]]
    assert on_gpu.let_device_finish() == [CompressionDone(3, 0), CompressionDone(4, 0)]


def test_swaps_run_beside_compressions_one_at_a_time(on_gpu: Bench) -> None:
    on_gpu.add(swap_out(1), stall(2), SwapIn(3, [1], 0, [1], 0))
    assert on_gpu.runner.advance() == []
    assert on_gpu.compressor.batches == [[2]]
    assert on_gpu.host_memory.uids == [1]
    assert sorted(answer.uid for answer in on_gpu.let_device_finish()) == [1, 2]
    on_gpu.runner.advance()
    assert on_gpu.let_device_finish() == [SwapDone(3)]


def test_how_long_to_wait_for_messages(on_gpu: Bench) -> None:
    assert on_gpu.runner.patience_ms is None
    on_gpu.add(stall(1), shadow(2), swap_out(3), swap_out(4))
    assert on_gpu.runner.patience_ms == 0
    on_gpu.runner.advance()
    assert on_gpu.runner.patience_ms == 1
    on_gpu.let_device_finish()
    assert on_gpu.runner.patience_ms == 0
    on_gpu.runner.advance()
    on_gpu.let_device_finish()
    assert on_gpu.runner.patience_ms is None


def test_a_cpu_is_done_at_once(on_cpu: Bench) -> None:
    on_cpu.add(stall(1), shadow(2), swap_out(3))
    assert on_cpu.runner.advance() == [CompressionDone(1, 0), SwapDone(3)]
    assert on_cpu.runner.patience_ms == 0
    assert on_cpu.runner.advance() == [CompressionDone(2, 0)]
    assert on_cpu.runner.patience_ms is None
    assert on_cpu.runner.advance() == []


def test_only_compactions_in_place_are_noted_and_before_they_begin(on_cpu: Bench) -> None:
    on_cpu.add(stall(1), stall(2), shadow(3), swap_out(4))
    on_cpu.runner.advance()
    on_cpu.runner.advance()
    assert on_cpu.compressor.noted == [[1, 2], [1, 2]]


def test_a_note_goes_when_the_request_comes_again(on_cpu: Bench) -> None:
    on_cpu.add(stall(1), stall(2))
    on_cpu.runner.advance()
    # The scheduler may not have the answers yet.
    assert on_cpu.journal.uids == [1, 2]
    on_cpu.add(swap_out(1))
    assert on_cpu.journal.uids == [2]


def test_lack_of_host_memory_fails_the_swap_and_nothing_else(on_cpu: Bench) -> None:
    on_cpu.add(swap_out(100), swap_out(2))
    assert on_cpu.runner.advance() == [JobFailed(100, "no host memory")]
    assert on_cpu.runner.advance() == [SwapDone(2)]


def test_real_jobs_do_what_they_say() -> None:
    case, expected = make_case(SCORING), make_case(SCORING)
    run_job(expected.job, expected.pool, SCORING)
    runner = JobRunner(case.pool, SCORING, Journal(None), HostMemory(with_host_memory(case)), NO_TRACE)
    runner.add(case.job)
    assert runner.advance() == [CompressionDone(case.job.uid, 0)]
    assert torch.equal(case.pool.keys, expected.pool.keys)
    blocks = case.job.target_blocks
    runner.add(SwapOut(5, blocks, 2, [6, 1, 3, 4, 5, 0], 0))
    assert runner.advance() == [SwapDone(5)]
    case.pool.keys.zero_()
    runner.add(SwapIn(5, blocks, 2, [6, 1, 3, 4, 5, 0], 0))
    assert runner.advance() == [SwapDone(5)]
    assert torch.equal(case.pool.keys[:, blocks], expected.pool.keys[:, blocks])


def test_other_errors_are_not_hidden() -> None:
    case = make_case(SCORING)
    runner = JobRunner(
        case.pool, SCORING, Journal(os.memfd_create("test")), HostMemory(with_host_memory(case)), NO_TRACE
    )
    runner.add(SwapOut(7, [400], 1, [1], 0))
    with pytest.raises(IndexError):
        runner.advance()


def with_host_memory(case: Case) -> KVPool:
    """The case's pool, with a place for one swapped request."""
    return replace(case.pool, geometry=msgspec.structs.replace(case.pool.geometry, num_host_blocks=7, num_host_slots=1))
