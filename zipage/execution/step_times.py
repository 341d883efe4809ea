"""When a GPU computed each step, as spans of the trace."""

from zipage import tracing
from zipage.execution.device_clock import DeviceClock
from zipage.execution.device_executor import LaunchedStep


class StepTimes:
    """Writes the device's part of launched steps; to be told of each once it is done, in order."""

    def __init__(self, tracer: tracing.Tracer) -> None:
        self._tracer = tracer
        # Steps are timed where they are traced.
        self._clock = DeviceClock() if tracer.enabled else None
        self._last_end = 0

    def write(self, step: LaunchedStep) -> None:
        """Write a step that has just been seen to be done; does nothing for one that has not been timed."""
        clock = self._clock
        if clock is None or step.begun is None or step.decoded is None or step.done is None:
            return
        # A graph cannot begin before the host has asked for it, however long the device has waited for that.
        begun = max(clock.time_of(step.begun), step.asked)
        decoded, done = clock.time_of(step.decoded), clock.time_of(step.done)
        if step.num_steady:
            self._write("decode", begun, decoded, step.step_id, step.num_steady)
        if step.num_others:
            self._write("prefill", decoded, done, step.step_id, step.num_others)
        clock.saw(step.done)

    def _write(self, name: str, start: int, end: int, step_id: int, rows: int) -> None:
        # One stream does one thing after the other, which the small error of the clock must not hide.
        start = max(start, self._last_end)
        self._last_end = max(start, end)
        self._tracer.span("device", name, start, self._last_end, step=step_id, rows=rows)
