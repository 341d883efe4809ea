"""Scoring, selection and compaction of kernels/reference.py against loops."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipage.kernels import reference
from zipage.kernels.reference import (
    combine,
    compact,
    gather_entries,
    global_score,
    place_entries,
    pool_score,
    redundancy_full,
    redundancy_lightning,
    select_entries,
    window_attention_score,
)


def redundancy_by_loops(keys: torch.Tensor, span: int, tau: float, temperature: float) -> torch.Tensor:
    """`[Hkv, n]`; keys judge those of their own `span`."""
    num_heads, num_entries, _ = keys.shape
    mean = torch.zeros(num_heads, num_entries)
    for head in range(num_heads):
        for judge in range(num_entries):
            first = judge // span * span
            others = [j for j in range(first, min(first + span, num_entries)) if j != judge]
            cosine = {j: torch.cosine_similarity(keys[head, j], keys[head, judge], dim=0) for j in others}
            spared = max((j for j in others if cosine[j] > tau), default=None)
            for j in others:
                if j != spared:
                    mean[head, j] += cosine[j] / (len(others) + 1)
    exponentials = torch.exp(mean / temperature)
    return exponentials / exponentials.sum(1, keepdim=True)


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("num_entries", [0, 1, 8, 19, 24])
def test_gather_entries_reads_in_order(shape, num_entries):
    cache = torch.randn(6, 2, 8, *shape)
    table = [4, 0, 3]
    entries = gather_entries(cache, torch.tensor(table), num_entries)
    assert entries.shape == (2, num_entries, *shape)
    for entry in range(num_entries):
        assert torch.equal(entries[:, entry], cache[table[entry // 8], :, entry % 8])


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("query_tile", [2, 64])
def test_window_attention_score_equals_loops(group, query_tile, monkeypatch):
    monkeypatch.setattr(reference, "_QUERY_TILE", query_tile)
    torch.manual_seed(group)
    keys, queries, indices = torch.randn(2, 20, 8), torch.randn(5, 2 * group, 8), [0, 3, 11, 18, 19]
    expected = torch.zeros(2, 20)
    for query, index in zip(queries, indices, strict=True):
        for kv_head in range(2):
            weights = []
            for head in range(kv_head * group, (kv_head + 1) * group):
                exponentials = torch.exp(keys[kv_head, : index + 1] @ query[head] * 0.7)
                weights.append(exponentials / exponentials.sum())
            expected[kv_head, : index + 1] += torch.stack(weights).amax(0) / 5
    torch.testing.assert_close(window_attention_score(queries, torch.tensor(indices), keys, 0.7), expected)


def test_window_attention_score_is_float32_from_low_precision():
    keys, queries = torch.randn(2, 20, 8).bfloat16(), torch.randn(3, 4, 8).bfloat16()
    indices = torch.tensor([17, 18, 19])
    score = window_attention_score(queries, indices, keys, 0.5)
    torch.testing.assert_close(score, window_attention_score(queries.float(), indices, keys.float(), 0.5))


def test_global_score_keeps_the_larger_of_fresh_and_decayed():
    score, old = torch.tensor([[0.5, 0.1, 0.4]]), torch.tensor([[0.5, 0.5, 0.5]])
    torch.testing.assert_close(global_score(score, old, 0.8), torch.tensor([[0.5, 0.4, 0.4]]))


@pytest.mark.parametrize("num_entries", [1, 2, 5, 13])
def test_pool_score_is_the_maximum_of_five_neighbours(num_entries):
    score = torch.rand(3, num_entries) - 0.5
    pooled = pool_score(score)
    for entry in range(num_entries):
        assert torch.equal(pooled[:, entry], score[:, max(0, entry - 2) : entry + 3].amax(1))


@pytest.mark.parametrize("tau", [-0.2, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("judge_tile", [7, 256])
def test_redundancy_full_equals_loops(tau, judge_tile, monkeypatch):
    monkeypatch.setattr(reference, "_JUDGE_TILE", judge_tile)
    torch.manual_seed(3)
    keys = torch.randn(2, 23, 4)
    expected = redundancy_by_loops(keys, 23, tau, 0.1)
    torch.testing.assert_close(redundancy_full(keys, tau, 0.1), expected)


@pytest.mark.parametrize("tau", [-0.2, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_entries", [5, 8, 24, 27])
def test_redundancy_lightning_equals_loops(tau, num_entries):
    torch.manual_seed(num_entries)
    keys = torch.randn(2, num_entries, 4)
    expected = redundancy_by_loops(keys, 8, tau, 0.1)
    torch.testing.assert_close(redundancy_lightning(keys, 8, tau, 0.1), expected)


@pytest.mark.parametrize("redundancy", [redundancy_full, partial(redundancy_lightning, block_size=8)])
def test_the_most_recent_copy_of_a_key_is_the_least_redundant(redundancy):
    copied, unlike = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    keys = torch.stack([copied, unlike, copied, copied, unlike, copied * 5, unlike])[None]
    score = redundancy(keys, tau=0.5, temperature=0.4)[0]
    assert score[5] < min(score[0], score[2], score[3])


def test_combine_weighs_score_against_redundancy():
    final = combine(torch.tensor([[1.0, 0.5]]), torch.tensor([[0.5, 0.25]]), 0.2)
    torch.testing.assert_close(final, torch.tensor([[-0.2, -0.1]]))


@settings(deadline=None)
@given(data=st.data())
def test_select_entries_ranks_by_tier_then_score_then_recency(data):
    num_entries = data.draw(st.integers(1, 30))
    keep = data.draw(st.integers(0, num_entries))
    values = st.sampled_from([-0.5, -0.0, 0.0, 0.25, 0.5, 1.0])
    final = [data.draw(st.lists(values, min_size=num_entries, max_size=num_entries)) for _ in range(2)]
    tiers = data.draw(st.lists(st.integers(0, 2), min_size=num_entries, max_size=num_entries))
    selected = select_entries(torch.tensor(final), keep, torch.tensor(tiers))
    for head in range(2):
        best_first = sorted(range(num_entries), key=lambda j: (-tiers[j], -final[head][j], -j))
        assert selected[head].tolist() == sorted(best_first[:keep])


@settings(deadline=None)
@given(data=st.data())
def test_compact_moves_kept_entries_together(data):
    """In place or elsewhere, for entries with and without a head size; what is no target place stays as it was."""
    block_size, num_heads = 4, 2
    blocks = data.draw(st.permutations(range(9)))
    table, others = blocks[:5], blocks[5:]
    num_entries = data.draw(st.integers(1, 5 * block_size))
    keep = data.draw(st.integers(1, num_entries))
    subset = st.lists(st.integers(0, num_entries - 1), min_size=keep, max_size=keep, unique=True).map(sorted)
    kept = [data.draw(subset) for _ in range(num_heads)]
    num_targets = -(-keep // block_size)
    targets = data.draw(st.sampled_from([table, table[::-1], [*others, table[0]]]))[:num_targets]
    shape = data.draw(st.sampled_from([(), (3,)]))
    cache = torch.arange(9 * num_heads * block_size).view(9, num_heads, block_size, *([1] * len(shape)))
    cache = cache.expand(9, num_heads, block_size, *shape).float().contiguous()
    expected = cache.clone()
    for head in range(num_heads):
        for place, entry in enumerate(kept[head]):
            moved = cache[table[entry // block_size], head, entry % block_size]
            expected[targets[place // block_size], head, place % block_size] = moved
    compact(cache, torch.tensor(table), torch.tensor(targets), torch.tensor(kept))
    assert torch.equal(cache, expected)


def test_place_entries_is_the_inverse_of_gather_entries():
    cache, entries, table = torch.zeros(6, 2, 8, 3), torch.randn(2, 19, 3), torch.tensor([4, 0, 3])
    place_entries(cache, table, entries)
    assert torch.equal(gather_entries(cache, table, 19), entries)
    assert cache.count_nonzero() == entries.count_nonzero()
