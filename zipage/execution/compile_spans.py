"""Compilations of Triton kernels, as spans of the trace: while requests run there should be none."""

from typing import Any

import triton

from zipage import tracing


def trace_compilations(tracer: tracing.Tracer) -> None:
    """Write a span for every kernel that is compiled or loaded from Triton's cache from now on, where tracing is on."""
    if tracer.enabled:
        triton.knobs.compilation.listener = _Listener(tracer)


class _Listener:
    """What Triton calls after each compilation, also one that its cache on disk has spared."""

    def __init__(self, tracer: tracing.Tracer) -> None:
        self._tracer = tracer

    def __call__(self, *, src: Any, metadata: Any, metadata_group: Any, times: Any, cache_hit: bool) -> None:
        end = tracing.now()
        duration_ns = 1000 * times.total
        name = "load" if cache_hit else "compile"
        self._tracer.span("compile", name, end - duration_ns, end, kernel=getattr(src, "name", "kernel"))
