"""Compilations of kernels are in the trace."""

from types import SimpleNamespace

import triton

from zipage.execution.compile_spans import trace_compilations
from zipage.tracing import Tracer, read_trace


def test_a_compilation_is_a_span(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    tracer = Tracer(str(tmp_path), "decode")
    trace_compilations(tracer)
    for cache_hit in (False, True):
        triton.knobs.compilation.listener(
            src=SimpleNamespace(name="attend"),
            metadata={},
            metadata_group={},
            times=SimpleNamespace(total=1500),
            cache_hit=cache_hit,
        )
    tracer.flush()
    (path,) = tmp_path.iterdir()
    _, spans, _ = read_trace(path)
    assert [(span.name, span.args) for span in spans] == [
        ("compile", {"kernel": "attend"}),
        ("load", {"kernel": "attend"}),
    ]
    assert {span.end - span.start for span in spans} == {1_500_000}


def test_nobody_listens_where_tracing_is_off(monkeypatch):
    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    trace_compilations(Tracer(None, "decode"))
    assert triton.knobs.compilation.listener is None
