"""Where queries are recorded: what a compression asks for must always still be there."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipage.eviction.query_rows import observed_queries, recorded_range

windows = st.integers(1, 12).map(lambda half: 2 * half)
recording = st.sampled_from(["last", "spread"])


def wanted(observe: str, window: int, num_queries: int) -> list[int]:
    if observe == "last":
        return list(range(num_queries))[-window:]
    stride = 1
    while num_queries > stride * window:
        stride *= 2
    return list(range(0, num_queries, stride))


@settings(deadline=None)
@given(recording, windows, st.integers(0, 400))
def test_observed_queries_are_the_wanted_ones_in_rows_of_their_own(observe, window, num_queries):
    observed = observed_queries(observe, window, num_queries)
    assert [index for index, _ in observed] == wanted(observe, window, num_queries)
    rows = [row for _, row in observed]
    assert len(set(rows)) == len(rows)
    assert all(0 <= row < window for row in rows)


@settings(deadline=None, max_examples=50)
@given(recording, windows)
def test_observed_queries_survive_one_by_one(observe, window):
    slot: dict[int, int] = {}
    for index in range(20 * window + 3):
        slot |= {row: index for _, row in recorded_range(observe, window, index, 1)}
        assert all(slot[row] == wanted for wanted, row in observed_queries(observe, window, index + 1))


@settings(deadline=None)
@given(recording, windows, st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_observed_queries_survive_any_chunks(observe, window, chunks):
    slot: dict[int, int] = {}
    start = 0
    for count in chunks:
        recorded = recorded_range(observe, window, start, count)
        assert len({row for _, row in recorded}) == len(recorded)
        assert [offset for offset, _ in recorded] == sorted({offset for offset, _ in recorded})
        assert all(0 <= offset < count for offset, _ in recorded)
        slot |= {row: start + offset for offset, row in recorded}
        start += count
        assert all(slot[row] == wanted for wanted, row in observed_queries(observe, window, start))


def test_spread_takes_the_rows_that_doubling_frees():
    rows = [recorded_range("spread", 4, index, 1) for index in range(18)]
    assert [recorded[0][1] if recorded else None for recorded in rows] == [
        *(0, 1, 2, 3),
        *(1, None, 3, None),
        *(2, None, None, None, 3, None, None, None),
        *(1, None),
    ]


@pytest.mark.parametrize("index", [0, 5, 100])
def test_all_records_nothing(index):
    assert recorded_range("all", 16, index, 50) == []
    assert observed_queries("all", 16, index) == []
