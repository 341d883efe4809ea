"""Batches of compressions where memory is short."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from test_job import make_case

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionDone, CompressionJob, JobFailed
from zipage.errors import EngineError
from zipage.eviction import compressor
from zipage.eviction.compressor import Compressor
from zipage.eviction.job import run_job

SCORING = ScoringOptions(pin_share=1.0)


class ScarceDevice:
    """Stands for the launches: notes which jobs run together, and how many layers until memory is at an end."""

    def __init__(self, layers_until_full: Callable[[Sequence[int]], int]) -> None:
        self.runs: list[list[int]] = []
        self._layers_until_full = layers_until_full

    def compress_layers(self, jobs: Sequence[CompressionJob], *_: object) -> Iterator[None]:
        self.runs.append([job.uid for job in jobs])
        for layer in range(3):
            if layer == self._layers_until_full(self.runs[-1]):
                raise torch.OutOfMemoryError("tried to allocate 1 GiB")
            yield


@pytest.fixture
def compress(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list]:
    """Runs jobs as on a GPU that takes `at_once` of them together."""
    pool = make_case(SCORING).pool

    def run(device: ScarceDevice, jobs: list[CompressionJob], at_once: int = 256) -> list:
        monkeypatch.setattr(compressor, "compress_layers", device.compress_layers)
        monkeypatch.setattr(Compressor, "_batch_size", lambda self, jobs: at_once)
        return Compressor(pool, SCORING).run(jobs)

    return run


def job(uid: int, in_place: bool = True) -> CompressionJob:
    return CompressionJob(uid, [0, 1, 2], [0, 1] if in_place else [4, 5], 24, 0, 0, 3, 0, 16 + 4)


@pytest.fixture(autouse=True)
def checks_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressor, "check_job", lambda *_: None)


def test_a_batch_is_cut_to_what_fits(compress: Callable[..., list]) -> None:
    device = ScarceDevice(lambda uids: -1)
    answers = compress(device, [job(uid) for uid in range(5)], at_once=2)
    assert device.runs == [[0, 1], [2, 3], [4]]
    assert answers == [CompressionDone(uid, 3) for uid in range(5)]


def test_jobs_are_tried_one_by_one_before_any_fails(compress: Callable[..., list]) -> None:
    device = ScarceDevice(lambda uids: 0 if len(uids) > 1 or uids == [2] else -1)
    answers = compress(device, [job(uid) for uid in (1, 2, 3)])
    assert device.runs == [[1, 2, 3], [1], [2], [3]]
    assert answers == [CompressionDone(1, 3), JobFailed(2, "tried to allocate 1 GiB"), CompressionDone(3, 3)]


def test_what_is_partly_overwritten_is_not_tried_again(compress: Callable[..., list]) -> None:
    device = ScarceDevice(lambda uids: 1 if len(uids) > 1 else -1)
    answers = compress(device, [job(1), job(2)])
    assert device.runs == [[1, 2]]
    assert all(isinstance(answer, JobFailed) for answer in answers)


def test_copies_to_other_blocks_can_always_be_tried_again(compress: Callable[..., list]) -> None:
    device = ScarceDevice(lambda uids: 1 if len(uids) > 1 else -1)
    answers = compress(device, [job(1, in_place=False), job(2, in_place=False)])
    assert device.runs == [[1, 2], [1], [2]]
    assert answers == [CompressionDone(1, 3), CompressionDone(2, 3)]


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = make_case(ScoringOptions())
    jobs = [case.job, CompressionJob(6, [0], [1], 9, 0, 0, 0, 0, 8)]
    with pytest.raises(EngineError, match="request 6"):
        Compressor(case.pool, ScoringOptions()).run(jobs)
    # The first one has not begun.
    assert torch.equal(case.pool.keys, case.before.keys)


def test_a_job_does_what_it_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case, alone = make_case(SCORING, num_pinned=13), make_case(SCORING, num_pinned=13)
    num_pinned = run_job(alone.job, alone.pool, SCORING).num_pinned
    assert Compressor(case.pool, SCORING).run([case.job]) == [CompressionDone(case.job.uid, num_pinned)]
    assert torch.equal(case.pool.keys, alone.pool.keys)
    assert torch.equal(case.pool.scores, alone.pool.scores)
