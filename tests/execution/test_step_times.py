"""When a GPU computed each step, told by events, for a trace in which the spans of a stream follow each other."""

import pytest

from zipage.execution import step_times
from zipage.execution.device_executor import LaunchedStep
from zipage.execution.step_times import StepTimes
from zipage.tracing import Tracer, read_trace


class FakeClock:
    """Events are the times at which they happened, as far as this clock is right."""

    error = 0

    def time_of(self, event: int) -> int:
        return event + self.error

    def saw(self, _event: int) -> None:
        self.error = -5


def step(step_id: int, *, begun: int, decoded: int, done: int, asked: int = 0, steady: int = 0, others: int = 0):
    return LaunchedStep(step_id, [], [], [], done, begun, decoded, asked, steady, others)


@pytest.fixture
def spans_of(tmp_path, monkeypatch):
    monkeypatch.setattr(step_times, "DeviceClock", FakeClock)
    tracer = Tracer(str(tmp_path), "decode")
    times = StepTimes(tracer)

    def write(*steps: LaunchedStep) -> list[tuple]:
        for each in steps:
            times.write(each)
        tracer.flush()
        (path,) = tmp_path.iterdir()
        return [(span.name, span.start, span.end, span.args) for span in read_trace(path)[1]]

    return write


def test_the_graph_and_what_comes_after_it(spans_of):
    spans = spans_of(step(3, begun=10, decoded=30, done=45, steady=7, others=2))
    assert spans == [("decode", 10, 30, {"step": 3, "rows": 7}), ("prefill", 30, 45, {"step": 3, "rows": 2})]


def test_what_a_step_has_not_is_not_written(spans_of):
    spans = spans_of(step(1, begun=10, decoded=11, done=20, others=1), step(2, begun=30, decoded=40, done=41, steady=1))
    assert [(name, args["step"]) for name, _, _, args in spans] == [("prefill", 1), ("decode", 2)]


def test_a_graph_begins_when_the_host_has_asked_for_it(spans_of):
    ((_, start, end, _),) = spans_of(step(1, begun=10, decoded=30, done=30, asked=17, steady=1))
    assert (start, end) == (17, 30)


def test_the_clock_never_makes_spans_overlap(spans_of):
    spans = spans_of(step(1, begun=10, decoded=30, done=30, steady=1), step(2, begun=30, decoded=50, done=50, steady=1))
    assert [(start, end) for _, start, end, _ in spans] == [(10, 30), (30, 45)]


def test_a_step_without_times_is_left_out(spans_of):
    assert spans_of(LaunchedStep(1, [], [], [], None)) == []


def test_without_a_trace_no_clock_is_made():
    # A real one would need a GPU here.
    StepTimes(Tracer(None, "decode")).write(step(1, begun=10, decoded=30, done=30, steady=1))
