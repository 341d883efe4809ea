"""CUDA events on the clock that all processes share."""

import torch

from zipage import tracing

_ALIGNMENT_NS = 1_000_000_000


def mark(is_timed: bool) -> torch.cuda.Event:
    """An event at this point of the current stream, whose time can be told where `is_timed`."""
    event = torch.cuda.Event(enable_timing=is_timed)
    event.record()
    return event


class DeviceClock:
    """Translates events of one stream into nanoseconds of CLOCK_MONOTONIC.

    The device tells how far apart two events are, but not when one was on the host's clock. The host sees an event
    shortly after it has happened; the shortest delay seen within a second counts as none, which also takes out the
    drift between both clocks. The error is that delay, some ten microseconds. All events need `enable_timing`.
    """

    def __init__(self) -> None:
        self._reference = torch.cuda.Event(enable_timing=True)
        self._reference.record()
        self._reference.synchronize()
        self._reference_ns = tracing.now()
        self._aligned_ns = self._reference_ns
        self._shortest_delay: int | None = None

    def time_of(self, event: torch.cuda.Event) -> int:
        """When an event happened, which must have happened."""
        return self._reference_ns + int(1e6 * self._reference.elapsed_time(event))

    def saw(self, event: torch.cuda.Event) -> None:
        """Note that the host has seen an event just now; later times are told from it, so that they stay exact."""
        seen, happened = tracing.now(), self.time_of(event)
        delay = seen - happened
        self._reference, self._reference_ns = event, happened
        if self._shortest_delay is None or delay < self._shortest_delay:
            self._shortest_delay = delay
        if seen - self._aligned_ns > _ALIGNMENT_NS or delay < 0:
            self._reference_ns += self._shortest_delay
            self._aligned_ns, self._shortest_delay = seen, None
