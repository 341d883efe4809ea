"""Tiers of entries and the pinned prompt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipage.eviction.selection import entry_tiers, pinned_after
from zipage.kernels.reference import select_entries


@pytest.mark.parametrize(
    ("sinks", "recent", "num_pinned", "expected"),
    [
        (2, 3, 0, [2, 2, 0, 0, 0, 2, 2, 2]),
        (2, 3, 4, [2, 2, 1, 1, 0, 2, 2, 2]),
        (0, 0, 8, [1] * 8),
        (0, 0, 0, [0] * 8),
        (0, 2, 8, [1, 1, 1, 1, 1, 1, 2, 2]),
        (6, 6, 3, [2] * 8),
        (20, 0, 0, [2] * 8),
        (0, 20, 0, [2] * 8),
    ],
)
def test_entry_tiers(sinks, recent, num_pinned, expected):
    tiers = entry_tiers(8, sinks, recent, num_pinned)
    assert tiers.tolist() == expected
    assert tiers.dtype == torch.int64


@settings(deadline=None)
@given(data=st.data())
def test_pinned_after_counts_the_prompts_survivors_in_every_head(data):
    num_entries = data.draw(st.integers(1, 40))
    keep = data.draw(st.integers(0, num_entries))
    sinks = data.draw(st.integers(0, keep))
    recent = data.draw(st.integers(0, keep - sinks))
    num_pinned = data.draw(st.integers(0, num_entries))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    tiers = entry_tiers(num_entries, sinks, recent, num_pinned)
    kept = select_entries(torch.rand(3, num_entries), keep, tiers)
    assert (kept < num_pinned).sum(1).tolist() == [pinned_after(tiers, num_pinned, keep)] * 3
