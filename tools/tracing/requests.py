"""When requests were in the engine, when they ran, and how long their compressions held them up."""

from dataclasses import dataclass

import numpy as np

from tools.tracing.intervals import Intervals, outnumbering, union
from tools.tracing.merge import EngineTrace, Window
from tools.tracing.spread import MILLISECONDS, SECONDS, Spread, spread
from tools.tracing.tables import Integers, SpanTable, integers

# The scheduler's spans that may end requests.
ENDING_NAMES = ("finish step", "finish job", "abort", "expire")


@dataclass(frozen=True)
class Lifetimes:
    """Requests that have been admitted to a step, in order of their arrival.

    Attributes:
        uids: int64 [n].
        added: start of the `add` that names the request, or of its first plan where the trace has no `add`.
        admitted: end of the first `plan` that names it.
        ended: end of the span that ends it (`finish step`, `finish job`, `abort` or `expire`), or of the trace where
            there is none; nanoseconds, int64 [n].
        finished: whether the trace has its end; bool [n].
    """

    uids: Integers
    added: Integers
    admitted: Integers
    ended: Integers
    finished: np.ndarray

    def alive(self) -> Intervals:
        """When at least one of them was in the engine."""
        return union(self.added, self.ended)


def lifetimes(trace: EngineTrace) -> Lifetimes:
    """The requests of a whole trace."""
    spans = trace.spans("scheduler", "scheduler", names=("add", "plan", *ENDING_NAMES))
    added: dict[int, int] = {}
    admitted: dict[int, tuple[int, int]] = {}
    ended: dict[int, int] = {}
    for span in spans.spans:
        for uid in span.args.get("ended" if span.name == "finish job" else "uids", ()):
            if span.name == "add":
                added.setdefault(uid, span.start)
            elif span.name == "plan":
                admitted.setdefault(uid, (span.start, span.end))
            else:
                ended[uid] = span.end
    uids = sorted(admitted, key=lambda uid: added.get(uid, admitted[uid][0]))
    return Lifetimes(
        uids=integers(uids),
        added=integers(added.get(uid, admitted[uid][0]) for uid in uids),
        admitted=integers(admitted[uid][1] for uid in uids),
        ended=integers(ended.get(uid, trace.window.end) for uid in uids),
        finished=np.array([uid in ended for uid in uids], dtype=np.bool_),
    )


def times_with_running(trace: EngineTrace, lives: Lifetimes) -> Intervals:
    """When at least one request ran: it had been admitted, had not ended, and was not stalled by its compression."""
    stalled = stalled_spans(trace)
    return outnumbering(lives.admitted, lives.ended, stalled.starts, stalled.ends)


def stalled_spans(trace: EngineTrace) -> SpanTable:
    """From when a request was passed over because of its compression to its next planned token; one uid each."""
    return trace.spans("scheduler", "stalled")


@dataclass(frozen=True)
class StalledMode:
    """Requests that were passed over because of a compression of one mode.

    Attributes:
        count: of the `stalled` spans that end in the window.
        total_s: of them together, inside the window.
        each_ms: of each.
    """

    count: int
    total_s: float
    each_ms: Spread


@dataclass(frozen=True)
class RequestFigures:
    """Requests of the window.

    Attributes:
        requests: those that were in the engine at some time in the window, and had been admitted when the trace ended.
        unfinished: of them, those whose end is not in the trace.
        lifetime_s: from `add` to the end, of those that ended in the window.
        total_lifetime_s: time that requests spent in the engine, inside the window, added up.
        stalled: by mode.
        stalled_share: the time of all `stalled` spans over `total_lifetime_s`; `None` without requests.
    """

    requests: int
    unfinished: int
    lifetime_s: Spread
    total_lifetime_s: float
    stalled: dict[str, StalledMode]
    stalled_share: float | None


def request_figures(trace: EngineTrace, lives: Lifetimes, window: Window) -> RequestFigures:
    """The figures of requests."""
    present = (lives.added < window.end) & (lives.ended > window.start)
    ended_here = lives.finished & (window.start <= lives.ended) & (lives.ended <= window.end)
    total = int(_clipped(lives.added, lives.ended, window).sum())
    stalled = stalled_spans(trace)
    times = _clipped(stalled.starts, stalled.ends, window)
    return RequestFigures(
        requests=int(present.sum()),
        unfinished=int((present & ~lives.finished).sum()),
        lifetime_s=spread((lives.ended - lives.added)[ended_here], SECONDS),
        total_lifetime_s=total / SECONDS,
        stalled={name: _stalled_mode(stalled, times, name, window) for name in sorted({s.name for s in stalled.spans})},
        stalled_share=float(times.sum()) / total if total else None,
    )


def _stalled_mode(stalled: SpanTable, times: Integers, name: str, window: Window) -> StalledMode:
    named = stalled.named(name)
    ending = named & (window.start <= stalled.ends) & (stalled.ends <= window.end)
    return StalledMode(
        int(ending.sum()), float(times[named].sum()) / SECONDS, spread(stalled.durations[ending], MILLISECONDS)
    )


def _clipped(starts: Integers, ends: Integers, window: Window) -> Integers:
    """How much of each interval lies inside the window."""
    return np.maximum(np.minimum(ends, window.end) - np.maximum(starts, window.start), 0)
