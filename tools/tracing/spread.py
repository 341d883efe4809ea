"""Percentiles."""

from dataclasses import dataclass

import numpy as np

from tools.tracing.tables import Integers

MICROSECONDS = 1e3
MILLISECONDS = 1e6
SECONDS = 1e9


@dataclass(frozen=True)
class Spread:
    """Of `count` values the median and the 99th percentile, linearly interpolated; `None` where there are no values."""

    count: int
    p50: float | None
    p99: float | None


def spread(nanoseconds: Integers, unit: float) -> Spread:
    """The spread of times, in another unit of so many nanoseconds."""
    if not len(nanoseconds):
        return Spread(0, None, None)
    p50, p99 = np.percentile(nanoseconds, (50, 99)) / unit
    return Spread(len(nanoseconds), float(p50), float(p99))
