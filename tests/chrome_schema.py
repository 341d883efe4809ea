"""What the Chrome trace event format asks of a trace, as checks."""

from collections import defaultdict
from typing import Any

Event = dict[str, Any]

_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "M": {"args": dict},
    "X": {"ts": (int, float), "dur": (int, float), "args": dict},
    "C": {"ts": (int, float), "args": dict},
    "s": {"ts": (int, float), "id": int, "cat": str},
    "t": {"ts": (int, float), "id": int, "cat": str},
    "f": {"ts": (int, float), "id": int, "cat": str, "bp": str},
}
_COMMON = {"name": str, "pid": int, "tid": int}
# Microseconds; times have three decimals.
_ROUNDING = 1e-4


def check_events(events: list[Event]) -> None:
    """Every event has its fields, and every process and thread a name; slices nest, and flows are whole."""
    for event in events:
        for field, kind in (_COMMON | _FIELDS[event["ph"]]).items():
            assert isinstance(event[field], kind), (field, event)
        assert event.get("ts", 0) >= 0, event
        assert event.get("dur", 0) >= 0, event
    slices = slices_by_thread(events)
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    processes = {event["pid"] for event in events if event["name"] == "process_name"}
    assert set(slices) == named
    assert {event["pid"] for event in events} == processes
    for spans in slices.values():
        _check_nesting(spans)
    for flow in flows(events).values():
        _check_flow(flow, slices)


def slices_by_thread(events: list[Event]) -> dict[tuple[int, int], list[Event]]:
    """Complete events of each thread."""
    slices: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append(event)
    return slices


def flows(events: list[Event]) -> dict[int, list[Event]]:
    """Flow events of each id, in the order of the file."""
    found: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            found[event["id"]].append(event)
    return found


def bound_slice(flow_event: Event, slices: dict[tuple[int, int], list[Event]]) -> Event:
    """The innermost slice that a flow event lies in."""
    time = flow_event["ts"]
    around = [
        each
        for each in slices[flow_event["pid"], flow_event["tid"]]
        if each["ts"] - _ROUNDING <= time <= each["ts"] + each["dur"] + _ROUNDING
    ]
    assert around, flow_event
    return min(around, key=lambda each: each["dur"])


def _check_nesting(spans: list[Event]) -> None:
    open_ends: list[float] = []
    for each in sorted(spans, key=lambda each: (each["ts"], -each["dur"])):
        end = each["ts"] + each["dur"]
        while open_ends and open_ends[-1] <= each["ts"] + _ROUNDING:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1] + _ROUNDING, each
        open_ends.append(end)


def _check_flow(flow: list[Event], slices: dict[tuple[int, int], list[Event]]) -> None:
    assert len(flow) > 1
    assert [event["ph"] for event in flow] == ["s", *"t" * (len(flow) - 2), "f"]
    assert flow[-1]["bp"] == "e"
    assert [event["ts"] for event in flow] == sorted(event["ts"] for event in flow)
    for event in flow:
        bound_slice(event, slices)
