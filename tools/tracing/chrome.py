"""The Chrome trace event format, which https://ui.perfetto.dev and chrome://tracing open.

Every process of the engine is a process there, every row of a lane a thread. Times are microseconds since the start of
the run.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tools.tracing.flows import FlowPoint, request_flows
from tools.tracing.lanes import Row, rows_of_trace
from tools.tracing.merge import EngineTrace, ProcessTrace

Event = dict[str, Any]


def write_chrome_trace(trace: EngineTrace, origin: int, path: Path) -> None:
    """Write the events of a trace; `origin` is the time in nanoseconds that is 0 there."""
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[')
        for number, event in enumerate(chrome_events(trace, origin)):
            file.write(b",\n" if number else b"\n")
            file.write(encoder.encode(event))
        file.write(b"\n]}\n")


def chrome_events(trace: EngineTrace, origin: int) -> Iterator[Event]:
    """Metadata, then spans, counters and flows; `origin` is the time in nanoseconds that is 0 there."""
    rows = rows_of_trace(trace)
    threads = [{"pid": row.process.header.pid, "tid": number} for number, row in enumerate(rows, start=1)]
    for rank, process in enumerate(trace.processes):
        yield from _process_events(process, rank)
    for rank, (row, thread) in enumerate(zip(rows, threads, strict=True)):
        yield _metadata("thread_name", thread, name=row.name)
        yield _metadata("thread_sort_index", thread, sort_index=rank)
    for row, thread in zip(rows, threads, strict=True):
        yield from _span_events(row, thread, origin)
    for process in trace.processes:
        yield from _counter_events(process, origin)
    for uid, points in request_flows(rows).items():
        yield from _flow_events(uid, points, threads, origin)


def _process_events(process: ProcessTrace, rank: int) -> Iterator[Event]:
    place = {"pid": process.header.pid, "tid": 0}
    name = f"{process.name}, restart {process.incarnation}" if process.incarnation else process.name
    yield _metadata("process_name", place, name=name)
    yield _metadata("process_sort_index", place, sort_index=rank)


def _metadata(name: str, place: dict[str, int], /, **args: Any) -> Event:
    return {"ph": "M", "name": name, "ts": 0, **place, "args": args}


def _span_events(row: Row, thread: dict[str, int], origin: int) -> Iterator[Event]:
    for span in row.spans:
        yield {
            "ph": "X",
            "name": span.name,
            "cat": row.lane,
            **thread,
            "ts": _microseconds(span.start - origin),
            "dur": _microseconds(span.end - span.start),
            "args": span.args,
        }


def _counter_events(process: ProcessTrace, origin: int) -> Iterator[Event]:
    for sample in process.counters:
        time = _microseconds(sample.time - origin)
        yield {
            "ph": "C",
            "name": sample.name,
            "pid": process.header.pid,
            "tid": 0,
            "ts": time,
            "args": sample.values,
        }


def _flow_events(
    uid: int, points: Sequence[FlowPoint], threads: Sequence[dict[str, int]], origin: int
) -> Iterator[Event]:
    """`s`, `t` ..., `f`; each belongs to the span of its thread in which its time lies."""
    for number, point in enumerate(points):
        event: Event = {
            "ph": "t",
            "name": "request",
            "cat": "request",
            "id": uid,
            **threads[point.row],
            "ts": _microseconds(point.time - origin),
        }
        if number == 0:
            event["ph"] = "s"
        elif number == len(points) - 1:
            # Without this it would belong to the next span.
            event |= {"ph": "f", "bp": "e"}
        yield event


def _microseconds(nanoseconds: int) -> float:
    return nanoseconds / 1000
