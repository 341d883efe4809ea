"""Frames of messages, and the spans from which their way between two processes is known."""

import pytest

from zipage.engine_messages import CompressionDone, JobAnswer, PoolOpened
from zipage.errors import EngineError
from zipage.messages import StatusQuery
from zipage.tracing import Tracer, read_trace
from zipage.wire import Wire

JOBS = PoolOpened | JobAnswer


def spans_of(tmp_path, tracer):
    tracer.flush()
    (path,) = tmp_path.iterdir()
    return read_trace(path)[1]


def test_messages_are_numbered_in_each_direction_and_for_each_peer(tmp_path):
    tracer = Tracer(str(tmp_path), "scheduler")
    wire = Wire(JOBS, "compression", tracer)
    frames = [wire.encode(CompressionDone(uid, 0)) for uid in (5, 6)]
    assert [wire.receive(frame) for frame in frames] == [CompressionDone(5, 0), CompressionDone(6, 0)]
    wire.begin_anew()
    assert wire.receive(wire.encode(PoolOpened([7]))) == PoolOpened([7])
    spans = spans_of(tmp_path, tracer)
    facts = [(span.lane, span.name, span.args["peer"], span.args["seq"]) for span in spans]
    assert facts == [
        ("link out", "CompressionDone", 0, 0),
        ("link out", "CompressionDone", 0, 1),
        ("link in", "CompressionDone", 0, 0),
        ("link in", "CompressionDone", 0, 1),
        ("link out", "PoolOpened", 1, 0),
        ("link in", "PoolOpened", 1, 0),
    ]
    assert {span.args["link"] for span in spans} == {"compression"}
    assert spans[0].args["bytes"] == len(frames[0])
    assert all(span.start <= span.end for span in spans)


def test_what_is_decoded_only_does_not_count(tmp_path):
    tracer = Tracer(str(tmp_path), "scheduler")
    wire = Wire(JOBS, "compression", tracer)
    frame = wire.encode(CompressionDone(5, 0))
    wire.decode(frame)
    wire.receive(frame)
    assert [span.args["seq"] for span in spans_of(tmp_path, tracer) if span.lane == "link in"] == [0]


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x81\xa4type\xa4Nope"])
def test_a_malformed_frame_names_the_link(frame):
    with pytest.raises(EngineError, match="malformed message on the compression link"):
        Wire(JOBS, "compression").decode(frame)


def test_a_message_of_another_link_is_malformed():
    frame = Wire(JOBS, "tokenizer").encode(StatusQuery(1))
    with pytest.raises(EngineError, match="malformed"):
        Wire(JOBS, "compression").receive(frame)
