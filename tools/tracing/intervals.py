"""Sets of instants: unions, exact intersections and complements of intervals, in nanoseconds."""

from dataclasses import dataclass

import numpy as np

from tools.tracing.tables import Integers


@dataclass(frozen=True)
class Intervals:
    """Disjoint intervals `[start, end)` that are not empty, in order.

    Attributes:
        starts, ends: nanoseconds, int64 [n].
    """

    starts: Integers
    ends: Integers

    @property
    def length(self) -> int:
        """Of all together, in nanoseconds."""
        return int((self.ends - self.starts).sum())

    def overlap(self, starts: Integers, ends: Integers) -> Integers:
        """How much of each interval `[start, end)` lies in this set; all int64 [m], nanoseconds."""
        return self._before(ends) - self._before(starts)

    def gaps(self, start: int, end: int) -> "Intervals":
        """What lies between `start` and `end` and not in this set."""
        starts = np.concatenate(([start], np.clip(self.ends, start, end)))
        ends = np.concatenate((np.clip(self.starts, start, end), [end]))
        return union(starts, ends)

    def _before(self, times: Integers) -> Integers:
        """How much of this set lies before each time."""
        if not len(self.starts):
            return np.zeros(len(times), dtype=np.int64)
        totals = np.concatenate(([0], np.cumsum(self.ends - self.starts)))
        index = np.searchsorted(self.starts, times, side="right") - 1
        inside = np.minimum(times, self.ends[index]) - self.starts[index]
        return np.where(index < 0, 0, totals[index] + inside)


def union(starts: Integers, ends: Integers) -> Intervals:
    """The instants that lie in any of the intervals `[start, end)`; both int64 [n], in any order."""
    filled = ends > starts
    order = np.argsort(starts[filled], kind="stable")
    starts, ends = starts[filled][order], ends[filled][order]
    if not len(starts):
        return Intervals(starts, ends)
    reached = np.maximum.accumulate(ends)
    begins = np.concatenate(([True], starts[1:] > reached[:-1]))
    last = np.concatenate((np.flatnonzero(begins)[1:] - 1, [len(starts) - 1]))
    return Intervals(starts[begins], reached[last])


def outnumbering(starts: Integers, ends: Integers, other_starts: Integers, other_ends: Integers) -> Intervals:
    """The instants that lie in more of the `n` intervals than of the `m` others; int64 [n] and [m]."""
    times = np.concatenate((starts, other_ends, ends, other_starts))
    gains = len(starts) + len(other_ends)
    changes = np.where(np.arange(len(times)) < gains, 1, -1)
    order = np.argsort(times, kind="stable")
    times, excess = times[order], np.cumsum(changes[order])
    more = np.flatnonzero(excess[:-1] > 0)
    return union(times[more], times[more + 1])
