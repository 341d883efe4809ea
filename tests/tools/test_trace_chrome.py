"""Chrome traces of small cases: names, rows of overlapping spans, counters, and the way of a request."""

import itertools
import json

from chrome_schema import bound_slice, check_events, flows, slices_by_thread
from hypothesis import given
from hypothesis import strategies as st
from trace_cases import counter, finish, make_file, make_trace, plan, span

from tools.tracing.chrome import chrome_events, write_chrome_trace
from tools.tracing.lanes import nest, rows_of_trace, split_into_rows
from tools.tracing.merge import merge


def events_of(trace):
    events = list(chrome_events(trace, trace.window.start))
    check_events(events)
    return events


def one_request():
    """Request 7 in every process, beside request 8, of which little is known."""
    return make_trace(
        tokenizer=[
            span("tokenizer", "submit", 1, 2, uids=[7]),
            span("tokenizer", "deliver", 40, 41, uids=[7]),
            span("tokenizer", "deliver", 70, 71, uids=[7]),
        ],
        scheduler=[
            span("scheduler", "add", 3, 4, uids=[7, 8]),
            plan(0, 5, 1, tokens=9, uids=(7,)),
            span("scheduler", "begin shadow", 25, 25.1, uids=[7]),
            span("scheduler", "finish job", 32, 32.1, uids=[7]),
            finish(5, 60, (7,)),
            counter("requests", 5.1, running=1.0, waiting=0.0),
        ],
        decode=[
            span("host", "launch", 6, 7, step=0),
            span("device", "decode", 7, 9, step=0, rows=3),
            span("device", "prefill", 9, 20, step=0, rows=1),
            span("device", "decode", 20, 22, step=1, rows=1),
        ],
        compression=[span("device", "shadow", 26, 30, uids=[7])],
    )


def test_the_way_of_a_request():
    events = events_of(one_request())
    found, slices = flows(events), slices_by_thread(events)
    assert list(found) == [7]
    names = [bound_slice(event, slices)["name"] for event in found[7]]
    assert names == ["submit", "add", "plan", "prefill", "shadow", "finish job", "finish step", "deliver"]
    assert found[7][-1]["ts"] == 69_500


def test_processes_and_lanes_have_names_in_order():
    files = [
        make_file("decode", 5, [span("device", "step", 0, 1, step=0), span("host", "launch", 0, 1, step=0)]),
        make_file("decode", 6, [span("device", "step", 3, 4, step=0)]),
        make_file("scheduler", 4, [span("extra", "x", 0, 1), span("link in", "Step", 0, 1), plan(0, 0, 1)]),
    ]
    events = events_of(merge(files))
    processes = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    lanes = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert processes == ["scheduler", "decode", "decode, restart 1"]
    assert lanes == ["scheduler", "link in", "extra", "host", "device", "device"]
    ranks = [event["args"]["sort_index"] for event in events if event["name"] == "thread_sort_index"]
    assert ranks == sorted(ranks)


def test_times_are_microseconds_and_counters_have_their_values():
    events = events_of(one_request())
    (first,) = [event for event in events if event["name"] == "submit"]
    assert (first["ts"], first["dur"], first["args"]) == (0, 1000, {"uids": [7]})
    (sample,) = [event for event in events if event["ph"] == "C"]
    assert (sample["name"], sample["ts"], sample["args"]) == ("requests", 4100, {"running": 1, "waiting": 0})


def test_the_file_is_one_json_object(tmp_path):
    trace = one_request()
    write_chrome_trace(trace, trace.window.start, tmp_path / "trace.json")
    content = json.loads((tmp_path / "trace.json").read_text())
    assert content["traceEvents"] == events_of(trace)


def test_requests_that_are_stalled_together_have_rows_of_their_own():
    stalled = [span("stalled", "stall", start, 10, uids=[start]) for start in (1, 2, 3)]
    rows = rows_of_trace(make_trace(scheduler=[*stalled, span("stalled", "stall", 11, 12, uids=[4]), plan(0, 0, 1)]))
    assert [(row.name, len(row.spans)) for row in rows] == [
        ("scheduler", 1),
        ("stalled", 2),
        ("stalled 2", 1),
        ("stalled 3", 1),
    ]


def test_a_span_inside_another_shares_its_row():
    (row,) = rows_of_trace(make_trace(decode=[span("host", "launch", 0, 9), span("host", "part", 2, 3)]))
    assert [each.name for each in row.spans] == ["launch", "part"]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=15))
def test_rows_hold_every_span_once_and_are_as_few_as_possible(bounds):
    pairs = sorted((min(pair), -max(pair)) for pair in bounds)
    spans = [span("stalled", "stall", start, -end) for start, end in pairs]
    rows = split_into_rows(spans)
    assert sorted(id(each) for row in rows for each in row) == sorted(map(id, spans))
    for row in rows:
        assert all(before.end <= after.start for before, after in itertools.pairwise(row))
        assert nest(row)
    if len(rows) > 1:
        at_once = max(sum(each.start <= other.start < each.end or each is other for each in spans) for other in spans)
        assert len(rows) <= at_once
