"""The way of each request through the processes, as points inside spans."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from tools.tracing.lanes import Row
from tools.tracing.requests import ENDING_NAMES
from tools.tracing.steps import JOB_NAMES, STEP_NAMES
from zipage.tracing import Span

_SCHEDULER_NAMES = ("add", "plan", *ENDING_NAMES)


@dataclass(frozen=True, order=True)
class FlowPoint:
    """A request passes through a span.

    Attributes:
        time: the middle of the span, in nanoseconds.
        row: index of the row that the span is in.
    """

    time: int
    row: int


def request_flows(rows: Sequence[Row]) -> dict[int, list[FlowPoint]]:
    """The points of each request in order of time, by uid; requests with a single point are left out.

    They are in `submit`, `add`, every `plan` that admits it, that step on the device, every batch of the compression
    worker with it, its `finish job`s, the `finish step` that ends it, and the last `deliver`.
    """
    points: dict[int, list[FlowPoint]] = defaultdict(list)
    delivered: dict[int, FlowPoint] = {}
    admitting: dict[int, list[int]] = defaultdict(list)
    for index, span in _spans(rows):
        point = _point(span, index)
        for uid in _uids(rows[index], span):
            if span.name == "deliver":
                delivered[uid] = max(point, delivered.get(uid, point))
            else:
                points[uid].append(point)
            if span.name == "plan":
                admitting[span.args["step"]].append(uid)
    for step, point in _computed(rows, admitting.keys()).items():
        for uid in admitting[step]:
            points[uid].append(point)
    for uid, point in delivered.items():
        points[uid].append(point)
    return {uid: sorted(points[uid]) for uid in sorted(points) if len(points[uid]) > 1}


def _spans(rows: Sequence[Row]) -> Iterator[tuple[int, Span]]:
    for index, row in enumerate(rows):
        for span in row.spans:
            yield index, span


def _uids(row: Row, span: Span) -> Sequence[int]:
    """The requests whose way leads through a span."""
    passes = (
        (row.lane == "tokenizer" and span.name in ("submit", "deliver"))
        or (row.lane == "scheduler" and span.name in _SCHEDULER_NAMES)
        or (row.process.name == "compression" and span.name in JOB_NAMES)
    )
    return span.args.get("uids", ()) if passes else ()


def _computed(rows: Sequence[Row], steps: Collection[int]) -> dict[int, FlowPoint]:
    """Where the device computes the prompts of some steps: the last of a step's spans, on a GPU `prefill`."""
    computed: dict[int, FlowPoint] = {}
    for index, span in _spans(rows):
        step = span.args.get("step", -1)
        on_device = rows[index].process.name == "decode" and rows[index].lane == "device" and span.name in STEP_NAMES
        if on_device and step in steps:
            point = _point(span, index)
            computed[step] = max(point, computed.get(step, point))
    return computed


def _point(span: Span, row: int) -> FlowPoint:
    return FlowPoint((span.start + span.end) // 2, row)
