"""Kernels that were compiled while the engine ran, which its warm-up should have left none of."""

from dataclasses import dataclass

from tools.tracing.merge import EngineTrace, Window
from tools.tracing.spread import MILLISECONDS


@dataclass(frozen=True)
class CompilationFigures:
    """Spans of the lanes `compile` that end in the window, of all processes.

    Attributes:
        compiled, loaded: kernels that were compiled, and that Triton's cache on disk had.
        total_ms: of all of them together.
    """

    compiled: int
    loaded: int
    total_ms: float


def compilation_figures(trace: EngineTrace, window: Window) -> CompilationFigures:
    """The figures of compilations."""
    spans = [
        span
        for process in trace.processes
        for span in process.spans
        if span.lane == "compile" and window.start <= span.end <= window.end
    ]
    return CompilationFigures(
        compiled=sum(span.name == "compile" for span in spans),
        loaded=sum(span.name == "load" for span in spans),
        total_ms=sum(span.end - span.start for span in spans) / MILLISECONDS,
    )
