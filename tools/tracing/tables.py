"""Spans as columns of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zipage.tracing import Span

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class SpanTable:
    """`n` spans in order of their start.

    Attributes:
        spans: the records.
        starts, ends: nanoseconds, int64 [n].
        incarnations: of the processes that wrote them, int64 [n].
    """

    spans: list[Span]
    starts: Integers
    ends: Integers
    incarnations: Integers

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def durations(self) -> Integers:
        """Nanoseconds, int64 [n]."""
        return self.ends - self.starts

    def column(self, name: str) -> Integers:
        """An argument of every span, -1 where a span has none of that name; int64 [n]."""
        return integers(span.args.get(name, -1) for span in self.spans)

    def named(self, *names: str) -> Flags:
        """Which spans have one of these names; bool [n]."""
        return np.array([span.name in names for span in self.spans], dtype=np.bool_)

    def select(self, chosen: Flags) -> "SpanTable":
        """The chosen spans alone; `chosen` is bool [n]."""
        spans = [self.spans[index] for index in np.flatnonzero(chosen)]
        return SpanTable(spans, self.starts[chosen], self.ends[chosen], self.incarnations[chosen])


def make_table(spans: list[Span], incarnations: Sequence[int]) -> SpanTable:
    """Spans that are in order of their start, with the incarnation of each one's process."""
    starts, ends = integers(span.start for span in spans), integers(span.end for span in spans)
    return SpanTable(spans, starts, ends, integers(incarnations))


def integers(values: Any) -> Integers:
    """An iterable of numbers as int64 [n]."""
    return np.fromiter(values, dtype=np.int64)


def last_before(keys: Integers, times: Integers, other_keys: Integers, other_times: Integers) -> Integers:
    """For each of `n` items the last of the `m` others with the same key and a time not after its own.

    Args:
        keys, times: int64 [n].
        other_keys, other_times: int64 [m].

    Returns:
        Indices of others, -1 where there is none; int64 [n].
    """
    num_others = len(other_keys)
    all_keys, all_times = np.concatenate((other_keys, keys)), np.concatenate((other_times, times))
    is_item = np.arange(len(all_keys)) >= num_others
    order = np.lexsort((is_item, all_times, all_keys))
    places = np.where(is_item[order], -1, np.arange(len(order)))
    latest = order[np.maximum(np.maximum.accumulate(places), 0)] if len(order) else order
    found = ~is_item[latest] & (all_keys[latest] == all_keys[order])
    result = np.full(len(all_keys), -1, dtype=np.int64)
    result[order] = np.where(found, latest, -1)
    return result[num_others:]
