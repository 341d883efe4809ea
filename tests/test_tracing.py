"""Traces: what is written comes back, whatever ends the process, and nothing is written where tracing is off."""

import threading
from pathlib import Path

import pytest

from zipage.errors import ConfigError
from zipage.tracing import CounterSample, Span, Tracer, now, prepare_trace_directory, read_trace


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def test_records_come_back(tmp_path):
    tracer = Tracer(str(tmp_path), "decode")
    tracer.span("device", "step", 10, 20, step=3)
    tracer.counter("pool", 15, blocks=7)
    tracer.flush()
    header, spans, counters = read_trace(only_file(tmp_path))
    assert header.process == "decode"
    assert spans == [Span("device", "step", 10, 20, {"step": 3})]
    assert counters == [CounterSample("pool", 15, {"blocks": 7.0})]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    tracer = Tracer(str(tmp_path), "decode")
    for start in range(5):
        tracer.span("host", "launch", start, start + 1)
    tracer.flush()
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    _, spans, _ = read_trace(path)
    assert [span.start for span in spans] == [0, 1, 2, 3]


def test_records_are_written_before_there_are_many_and_before_long(tmp_path):
    tracer = Tracer(str(tmp_path), "scheduler")
    start = now()
    for _ in range(1000):
        tracer.span("scheduler", "plan", start, start)
    written = len(only_file(tmp_path).read_bytes().splitlines())
    assert 700 < written <= 1001
    tracer.span("scheduler", "plan", start, start + 10**9)
    assert len(only_file(tmp_path).read_bytes().splitlines()) == 1002


def test_several_threads_lose_nothing(tmp_path):
    tracer = Tracer(str(tmp_path), "decode")

    def write(number: int) -> None:
        for start in range(500):
            tracer.span(str(number), "x", start, start)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracer.flush()
    _, spans, _ = read_trace(only_file(tmp_path))
    for number in range(4):
        assert [span.start for span in spans if span.lane == str(number)] == list(range(500))


def test_off_is_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracer = Tracer(None, "decode")
    tracer.span("device", "step", 10, 20)
    tracer.counter("pool", 15, blocks=7)
    tracer.flush()
    assert not tracer.enabled
    assert not list(tmp_path.iterdir())


def test_what_is_no_trace(tmp_path):
    (tmp_path / "x.jsonl").write_text('["span","a","b",1,2]\n')
    with pytest.raises(ValueError, match="no trace"):
        read_trace(tmp_path / "x.jsonl")


def test_the_directory_is_made(tmp_path):
    assert prepare_trace_directory(tmp_path / "a" / "b") == str(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="trace must be a directory"):
        prepare_trace_directory(tmp_path / "file" / "b")
