"""The files of a trace directory as one trace, whose times share a clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tools.tracing.tables import SpanTable, make_table
from zipage.tracing import CounterSample, Span, TraceHeader, read_trace

PROCESS_ORDER = ("tokenizer", "scheduler", "decode", "compression")


@dataclass(frozen=True)
class ProcessTrace:
    """What one process wrote.

    Attributes:
        header: says which process.
        incarnation: 0 for the first process of its name, 1 for the one that took its place, and so on.
        spans: in order of their start, an enclosing span before what it encloses.
        counters: in order of time.
    """

    header: TraceHeader
    incarnation: int
    spans: list[Span]
    counters: list[CounterSample]

    @property
    def name(self) -> str:
        """`tokenizer`, `scheduler`, `decode` or `compression`."""
        return self.header.process


@dataclass(frozen=True)
class Window:
    """A part of a run, in nanoseconds of the trace's clock."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """In nanoseconds."""
        return self.end - self.start

    def common(self, other: "Window") -> "Window":
        """What lies in both, which must be something."""
        return Window(max(self.start, other.start), min(self.end, other.end))


@dataclass(frozen=True)
class EngineTrace:
    """What all processes of one engine wrote.

    Attributes:
        processes: in the order of `PROCESS_ORDER`, those of one name by incarnation.
        window: from the first to the last instant that a record is about.
    """

    processes: list[ProcessTrace]
    window: Window

    def spans(self, process: str, *lanes: str, names: Sequence[str] = ()) -> SpanTable:
        """The spans in some lanes of the processes of one name; only those with certain names, where any are given."""
        found = [
            (each.incarnation, span)
            for each in self.processes
            if each.name == process
            for span in each.spans
            if span.lane in lanes and (not names or span.name in names)
        ]
        found.sort(key=lambda item: (item[1].start, -item[1].end))
        return make_table([span for _, span in found], [incarnation for incarnation, _ in found])

    def inside(self, window: Window) -> "EngineTrace":
        """The records that lie in a part of the run from their start to their end; times stay as they are."""
        processes = [
            ProcessTrace(
                each.header,
                each.incarnation,
                [span for span in each.spans if window.start <= span.start and span.end <= window.end],
                [sample for sample in each.counters if window.start <= sample.time <= window.end],
            )
            for each in self.processes
        ]
        return EngineTrace(processes, window)

    def part(self, first: float | None, last: float | None) -> Window:
        """The part of the run between two times in seconds since its start; negative ones count from its end.

        Raises:
            ValueError: nothing lies between them.
        """
        start, end = self.window.start, self.window.end
        window = Window(
            start if first is None else self._at(first),
            end if last is None else self._at(last),
        )
        if not start <= window.start < window.end <= end:
            raise ValueError(
                f"the part must begin before it ends, inside the {self.window.length / 1e9:.3f} s of the run"
            )
        return window

    def _at(self, seconds: float) -> int:
        return round(1e9 * seconds) + (self.window.end if seconds < 0 else self.window.start)


def read_trace_directory(directory: Path) -> EngineTrace:
    """All `*.jsonl` files of a directory.

    Raises:
        ValueError: there are none, one is no trace, nothing happened in them, or they are of more than one engine.
    """
    paths = sorted(directory.glob("*.jsonl"))
    if not paths:
        raise ValueError(f"{directory} holds no trace, which is *.jsonl files")
    return merge(map(_read, paths), str(directory))


def _read(path: Path) -> tuple[TraceHeader, list[Span], list[CounterSample]]:
    try:
        return read_trace(path)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no trace of a zipage process: {error}") from None


def merge(
    files: Iterable[tuple[TraceHeader, list[Span], list[CounterSample]]], source: str = "the trace"
) -> EngineTrace:
    """The traces of single processes, as `read_trace` gives them, as one.

    Raises:
        ValueError: nothing happened in them, or they are of more than one engine.
    """
    processes: list[ProcessTrace] = []
    for header, spans, counters in sorted(files, key=_order):
        incarnation = sum(each.name == header.process for each in processes)
        if incarnation and header.process == "scheduler":
            raise ValueError(f"{source} holds more than one engine; trace each into a directory of its own")
        spans = sorted(spans, key=lambda span: (span.start, -span.end))
        processes.append(ProcessTrace(header, incarnation, spans, sorted(counters, key=lambda sample: sample.time)))
    times = [time for each in processes for span in each.spans for time in (span.start, span.end)]
    times += [sample.time for each in processes for sample in each.counters]
    if not times:
        raise ValueError(f"{source} is empty: the engine has done nothing")
    return EngineTrace(processes, Window(min(times), max(times)))


def _order(file: tuple[TraceHeader, list[Span], list[CounterSample]]) -> tuple[int, str, float, int]:
    """Processes of one name by their first record; one without records has done nothing that could be mistaken."""
    header, spans, counters = file
    known = header.process in PROCESS_ORDER
    first = min([span.start for span in spans] + [sample.time for sample in counters], default=float("inf"))
    return PROCESS_ORDER.index(header.process) if known else len(PROCESS_ORDER), header.process, first, header.pid
