"""Unions, overlaps and gaps of intervals against sets of instants; percentiles; matching by key and time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tools.tracing.intervals import Intervals, outnumbering, union
from tools.tracing.spread import MILLISECONDS, Spread, spread
from tools.tracing.tables import integers, last_before

# Ends may come before starts: such intervals are empty, as are those without length.
BOUNDS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12)
Bounds = list[tuple[int, int]]


def columns(bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    return integers(start for start, _ in bounds), integers(end for _, end in bounds)


def instants(bounds: Bounds) -> set[int]:
    """The instants of half-open intervals."""
    return {instant for start, end in bounds for instant in range(start, end)}


def bounds_of(intervals: Intervals) -> Bounds:
    return list(zip(intervals.starts.tolist(), intervals.ends.tolist(), strict=True))


@given(BOUNDS)
def test_a_union_holds_the_same_instants_in_disjoint_intervals(bounds):
    joined = union(*columns(bounds))
    assert instants(bounds_of(joined)) == instants(bounds)
    assert joined.length == len(instants(bounds))
    assert all(start < end for start, end in bounds_of(joined))
    assert all(end < start for end, start in zip(joined.ends[:-1], joined.starts[1:], strict=True))


@given(BOUNDS, BOUNDS)
def test_an_overlap_is_counted_to_the_instant(bounds, others):
    proper = [(min(pair), max(pair)) for pair in others]
    overlap = union(*columns(bounds)).overlap(*columns(proper))
    assert overlap.tolist() == [len(instants([pair]) & instants(bounds)) for pair in proper]


@given(BOUNDS, st.integers(0, 40), st.integers(0, 40))
def test_gaps_are_what_is_left(bounds, start, end):
    start, end = min(start, end), max(start, end)
    gaps = union(*columns(bounds)).gaps(start, end)
    assert instants(bounds_of(gaps)) == set(range(start, end)) - instants(bounds)


@given(BOUNDS, BOUNDS)
def test_more_of_one_kind_than_of_the_other(bounds, others):
    bounds, others = ([(min(pair), max(pair)) for pair in each] for each in (bounds, others))
    more = {
        instant
        for instant in range(41)
        if sum(a <= instant < b for a, b in bounds) > sum(a <= instant < b for a, b in others)
    }
    assert instants(bounds_of(outnumbering(*columns(bounds), *columns(others)))) == more


KEYS_AND_TIMES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10)), max_size=12)


@given(KEYS_AND_TIMES, KEYS_AND_TIMES)
def test_the_last_one_before_has_the_same_key(items, others):
    found = last_before(*columns(items), *columns(others)).tolist()
    for (key, time), index in zip(items, found, strict=True):
        earlier = [other_time for other_key, other_time in others if other_key == key and other_time <= time]
        if index < 0:
            assert not earlier
        else:
            assert others[index] == (key, max(earlier))


def test_percentiles_are_interpolated():
    times = integers(range(0, 101 * 10**6, 10**6))
    assert spread(times, MILLISECONDS) == Spread(101, 50.0, 99.0)
    assert spread(integers([4 * 10**6, 5 * 10**6]), MILLISECONDS) == Spread(2, 4.5, 4.99)
    assert spread(integers([]), MILLISECONDS) == Spread(0, None, None)
