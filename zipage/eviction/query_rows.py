"""Which queries of an interval are recorded, and in which row of the request's query slot.

An interval starts at position 0 and again after every compression; interval index `i` counts its queries from 0. A slot
holds `window` rows, `w`.

* `last`: a ring. Query `i` goes to row `i % w`; the last `w` are observed.
* `spread`: after `n` queries every `s`-th one is observed, `s` the smallest power of two with `n <= s * w`, so that at
  most `w` rows are in use. When the stride doubles to `s`, the odd multiples of `s / 2` are no longer wanted, and their
  rows take the queries that follow, in order.
* `all`: decode attention accumulates instead, and no query is recorded.
"""

from zipage.config import Observe


def recorded_range(observe: Observe, window: int, start: int, count: int) -> list[tuple[int, int]]:
    """What to record of a chunk of queries, each row at most once.

    Args:
        observe: which queries are observed.
        window: rows of a slot.
        start: interval index of the chunk's first query.
        count: queries in the chunk.

    Returns:
        Pairs of (offset in the chunk, slot row), offsets ascending: those that a compression right after the chunk
        observes, because what the chunk itself would overwrite or thin out is never observed again.
    """
    return [(index - start, row) for index, row in _observed_from(observe, window, start, start + count)]


def observed_queries(observe: Observe, window: int, num_queries: int) -> list[tuple[int, int]]:
    """Pairs of (interval index, slot row) that a compression after `num_queries` queries uses, ascending."""
    return _observed_from(observe, window, 0, num_queries)


def _observed_from(observe: Observe, window: int, start: int, num_queries: int) -> list[tuple[int, int]]:
    """Those of `observed_queries` from interval index `start` on, without going through the others."""
    if observe == "all":
        return []
    if observe == "last":
        return [(index, index % window) for index in range(max(start, num_queries - window), num_queries)]
    stride = _stride(window, num_queries)
    first = -(-start // stride) * stride
    return [(index, _spread_row(window, index)) for index in range(first, num_queries, stride)]


def _stride(window: int, num_queries: int) -> int:
    """The smallest power of two `s` with `num_queries <= s * window`."""
    return 1 << (max(num_queries - 1, 0) // window).bit_length()


def _spread_row(window: int, index: int) -> int:
    """The row of a recorded query: its own while rows are free, then that of the query whose place it takes.

    At stride `s` the queries `s * w / 2 + s * k` take the places of `s / 2 + s * k`, which may have taken others.
    """
    while index >= window:
        stride = _stride(window, index + 1)
        index -= stride * window // 2 - stride // 2
    return index
