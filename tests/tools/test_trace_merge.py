"""The files of a directory as one trace: order, restarted processes, parts of a run, and what is refused."""

import msgspec
import pytest
from trace_cases import MS, counter, make_file, make_trace, span, window

from tools.tracing.merge import merge, read_trace_directory
from zipage.tracing import Tracer


def test_a_directory_is_read_whole(tmp_path):
    for name in ("scheduler", "decode"):
        tracer = Tracer(str(tmp_path), name)
        tracer.span("lane", name, 10, 20, step=1)
        tracer.counter("pool", 30, blocks=3)
        tracer.flush()
    trace = read_trace_directory(tmp_path)
    assert [process.name for process in trace.processes] == ["scheduler", "decode"]
    assert (trace.window.start, trace.window.end) == (10, 30)
    assert [process.counters[0].values for process in trace.processes] == [{"blocks": 3}] * 2


def test_a_restarted_process_is_another_one_of_that_name():
    files = [
        make_file("decode", 9, [span("device", "step", 0, 1, step=0)]),
        make_file("decode", 7, [span("device", "step", 5, 6, step=1)]),
        make_file("tokenizer", 8, []),
    ]
    trace = merge(files)
    assert [(process.name, process.header.pid, process.incarnation) for process in trace.processes] == [
        ("tokenizer", 8, 0),
        ("decode", 9, 0),
        ("decode", 7, 1),
    ]
    steps = trace.spans("decode", "device")
    assert (steps.column("step").tolist(), steps.incarnations.tolist()) == ([0, 1], [0, 1])
    assert steps.column("rows").tolist() == [-1, -1]


def test_spans_are_chosen_by_lane_and_name():
    records = [span("device", "b", 2, 3), span("device", "a", 1, 5), span("swap", "a", 0, 1), span("host", "a", 0, 1)]
    trace = make_trace(compression=records)
    assert [each.start for each in trace.spans("compression", "device", "swap", names=("a",)).spans] == [0, MS]
    assert [each.name for each in trace.spans("compression", "device").spans] == ["a", "b"]
    assert len(trace.spans("decode", "device")) == 0


def test_only_what_lies_inside_is_kept_of_a_part():
    trace = make_trace(decode=[span("device", "step", n, n + 1, step=n) for n in range(5)] + [counter("pool", 4.5)])
    part = trace.inside(window(1, 4.2))
    assert part.spans("decode", "device").column("step").tolist() == [1, 2, 3]
    assert part.processes[0].counters == []
    assert part.window == window(1, 4.2)


def test_parts_are_given_in_seconds_from_either_end():
    trace = make_trace(decode=[span("device", "step", 1000, 5000)])
    assert trace.part(None, None) == window(1000, 5000)
    assert trace.part(0.5, 2) == window(1500, 3000)
    assert trace.part(-1, None) == window(4000, 5000)
    for first, last in ((3, 2), (4.5, None), (-5, None), (0, 6)):
        with pytest.raises(ValueError, match=r"inside the 4\.000 s of the run"):
            trace.part(first, last)


def test_what_is_no_trace_of_one_engine_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no trace"):
        read_trace_directory(tmp_path)
    with pytest.raises(ValueError, match="has done nothing"):
        merge([make_file("decode", 1, [])])
    twice = [make_file("scheduler", pid, [span("scheduler", "plan", 0, 1)]) for pid in (1, 2)]
    with pytest.raises(ValueError, match="more than one engine"):
        merge(twice)
    (tmp_path / "answers.jsonl").write_bytes(msgspec.json.encode({"prompt": "x"}) + b"\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl is no trace"):
        read_trace_directory(tmp_path)
