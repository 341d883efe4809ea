"""Small traces made by hand, times in milliseconds."""

from typing import Any

from tools.tracing.merge import EngineTrace, Window, merge
from zipage.tracing import CounterSample, Span, TraceHeader

MS = 1_000_000


def span(lane: str, name: str, start: float, end: float, **args: Any) -> Span:
    """From `start` to `end` milliseconds."""
    return Span(lane, name, round(start * MS), round(end * MS), args)


def plan(step: int, start: float, rows: int, *, tokens: int | None = None, uids: tuple[int, ...] = ()) -> Span:
    """A plan that takes a tenth of a millisecond; every row has one token where `tokens` does not say otherwise."""
    tokens = rows if tokens is None else tokens
    return span("scheduler", "plan", start, start + 0.1, step=step, rows=rows, tokens=tokens, uids=list(uids))


def finish(step: int, start: float, uids: tuple[int, ...] = ()) -> Span:
    """A `finish step` that takes a tenth of a millisecond and ends requests."""
    return span("scheduler", "finish step", start, start + 0.1, step=step, uids=list(uids))


def counter(name: str, time: float, **values: float) -> CounterSample:
    """Numbers at a time in milliseconds."""
    return CounterSample(name, round(time * MS), values)


def make_trace(**processes: list[Span | CounterSample]) -> EngineTrace:
    """One process of each name; process ids count from 100."""
    return merge([make_file(name, pid, records) for pid, (name, records) in enumerate(processes.items(), start=100)])


def make_file(
    name: str, pid: int, records: list[Span | CounterSample]
) -> tuple[TraceHeader, list[Span], list[CounterSample]]:
    """What `read_trace` gives for a file of these records."""
    spans = [record for record in records if isinstance(record, Span)]
    return TraceHeader(name, pid), spans, [record for record in records if isinstance(record, CounterSample)]


def window(start: float, end: float) -> Window:
    """Between two times in milliseconds."""
    return Window(round(start * MS), round(end * MS))
