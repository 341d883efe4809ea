"""Lanes in the order in which they are shown, and the rows that a lane needs where its spans overlap."""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tools.tracing.merge import EngineTrace, ProcessTrace
from zipage.tracing import Span

_LANE_ORDER = ("tokenizer", "scheduler", "host", "compile", "device", "swap", "stalled", "link out", "link in")
# Lanes of spans that have nothing to do with each other, even where one lies inside the other.
_LANES_OF_MANY = ("stalled",)


@dataclass(frozen=True)
class Row:
    """Spans of one lane that are shown in one row: each two are disjoint, or one lies inside the other.

    Attributes:
        number: 0 is the lane's first row.
        spans: in order of their start, an enclosing span before what it encloses.
    """

    process: ProcessTrace
    lane: str
    number: int
    spans: list[Span]

    @property
    def name(self) -> str:
        """The lane, and which of its rows."""
        return self.lane if self.number == 0 else f"{self.lane} {self.number + 1}"


def rows_of_trace(trace: EngineTrace) -> list[Row]:
    """All rows in the order in which they are shown, those of a process together."""
    rows = []
    for process in trace.processes:
        lanes: dict[str, list[Span]] = defaultdict(list)
        for span in process.spans:
            lanes[span.lane].append(span)
        for lane in sorted(lanes, key=_lane_rank):
            spans = lanes[lane]
            split = [spans] if lane not in _LANES_OF_MANY and nest(spans) else split_into_rows(spans)
            rows += [Row(process, lane, number, part) for number, part in enumerate(split)]
    return rows


def nest(spans: Sequence[Span]) -> bool:
    """Whether each two are disjoint or one lies inside the other.

    `spans` are in order of their start, an enclosing one before what it encloses.
    """
    open_ends: list[int] = []
    for span in spans:
        while open_ends and open_ends[-1] <= span.start:
            open_ends.pop()
        if open_ends and span.end > open_ends[-1]:
            return False
        open_ends.append(span.end)
    return True


def split_into_rows(spans: Sequence[Span]) -> list[list[Span]]:
    """As few rows as it takes for the spans of each to be disjoint: every span goes into the first that is free.

    `spans` are in order of their start.
    """
    rows: list[list[Span]] = []
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    for span in spans:
        while busy and busy[0][0] <= span.start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        number = heapq.heappop(free) if free else len(rows)
        if number == len(rows):
            rows.append([])
        rows[number].append(span)
        heapq.heappush(busy, (span.end, number))
    return rows


def _lane_rank(lane: str) -> tuple[int, str]:
    return _LANE_ORDER.index(lane) if lane in _LANE_ORDER else len(_LANE_ORDER), lane
