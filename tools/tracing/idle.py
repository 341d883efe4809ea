"""How long the device waited for decode steps."""

from dataclasses import dataclass

from tools.tracing.intervals import Intervals
from tools.tracing.merge import Window
from tools.tracing.spread import MILLISECONDS, Spread, spread
from tools.tracing.steps import Steps


@dataclass(frozen=True)
class IdleFigures:
    """Gaps without a decode step, between the first and the last step of the window.

    Attributes:
        span_ms: from the start of the first step to the end of the last.
        idle_ms: of that, with no `decode`, `prefill` or `step` span on the device.
        idle_share: `idle_ms / span_ms`; `None` without steps.
        gap_ms: of each gap.
        running_ms: of `span_ms`, while a request ran: admitted, not ended, and not stalled by its compression.
        idle_while_running_ms: of `idle_ms`, likewise.
        idle_while_running_share: `idle_while_running_ms / running_ms`; `None` where no request ran.
    """

    span_ms: float
    idle_ms: float
    idle_share: float | None
    gap_ms: Spread
    running_ms: float
    idle_while_running_ms: float
    idle_while_running_share: float | None


def idle_figures(steps: Steps, decoding: Intervals, running: Intervals, window: Window) -> IdleFigures:
    """The figures of gaps.

    Args:
        steps: of the whole trace.
        decoding: when decode steps were on the device.
        running: when requests ran.
        window: where steps have to lie.
    """
    inside = (window.start <= steps.starts) & (steps.ends <= window.end)
    if not inside.any():
        return IdleFigures(0.0, 0.0, None, Spread(0, None, None), 0.0, 0.0, None)
    first, last = int(steps.starts[inside].min()), int(steps.ends[inside].max())
    gaps = decoding.gaps(first, last)
    idle, idle_running = gaps.length, int(running.overlap(gaps.starts, gaps.ends).sum())
    time_running = last - first - running.gaps(first, last).length
    return IdleFigures(
        span_ms=(last - first) / MILLISECONDS,
        idle_ms=idle / MILLISECONDS,
        idle_share=idle / (last - first) if last > first else None,
        gap_ms=spread(gaps.ends - gaps.starts, MILLISECONDS),
        running_ms=time_running / MILLISECONDS,
        idle_while_running_ms=idle_running / MILLISECONDS,
        idle_while_running_share=idle_running / time_running if time_running else None,
    )
