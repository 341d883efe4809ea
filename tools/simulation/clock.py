"""Virtual time: what is to happen, in the order of its times."""

import heapq
from collections.abc import Callable

Action = Callable[[float], None]


class EventQueue:
    """Actions at times in seconds; those of the same time run in the order in which they were put in."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Action]] = []
        self._count = 0

    def at(self, time: float, action: Action) -> None:
        """Have `action` called with `time`, once that has come."""
        heapq.heappush(self._events, (time, self._count, action))
        self._count += 1

    def run_next(self) -> float | None:
        """Run the earliest action; returns its time, or None where nothing is left."""
        if not self._events:
            return None
        time, _, action = heapq.heappop(self._events)
        action(time)
        return time
