"""Paged attention and cache writes of kernels/reference.py against loops over dense entries."""

from dataclasses import dataclass

import pytest
import torch

from zipage.kernels import reference
from zipage.kernels.reference import paged_decode_attention, paged_prefill_attention, write_kv, write_queries

HEAD_DIM = 16
SCALE = 0.3
NUM_BLOCKS = 40


@dataclass
class PagedRequests:
    """Requests with scattered blocks in one layer's cache, and their dense keys and values `[n, Hkv, d]`."""

    key_cache: torch.Tensor
    value_cache: torch.Tensor
    tables: torch.Tensor
    lengths: list[int]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def paged_requests(lengths: list[int], num_kv_heads: int, block_size: int) -> PagedRequests:
    """Fill a cache entry by entry; what no request owns holds large numbers, also the padding block 0."""
    torch.manual_seed(sum(lengths) + num_kv_heads)
    caches = [torch.full((NUM_BLOCKS, num_kv_heads, block_size, HEAD_DIM), 1e3) for _ in range(2)]
    free = (torch.randperm(NUM_BLOCKS - 1) + 1).tolist()
    tables = torch.zeros(len(lengths), max(lengths) // block_size + 2, dtype=torch.int64)
    dense = [[torch.randn(n, num_kv_heads, HEAD_DIM) for n in lengths] for _ in caches]
    for request, length in enumerate(lengths):
        for entry in range(length):
            if entry % block_size == 0:
                tables[request, entry // block_size] = free.pop()
            for cache, entries in zip(caches, dense, strict=True):
                cache[tables[request, entry // block_size], :, entry % block_size] = entries[request][entry]
    return PagedRequests(caches[0], caches[1], tables, lengths, dense[0], dense[1])


def attention_by_loops(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[Hq, d]` of one query and, per entry and KV head, the group's largest probability `[n, Hkv]`."""
    num_kv_heads = keys.shape[1]
    output, largest = torch.zeros_like(query), torch.zeros(keys.shape[:2])
    for head, vector in enumerate(query):
        kv_head = head // (len(query) // num_kv_heads)
        weights = torch.exp(keys[:, kv_head] @ vector * SCALE)
        weights /= weights.sum()
        output[head] = (weights[:, None] * values[:, kv_head]).sum(0)
        largest[:, kv_head] = torch.maximum(largest[:, kv_head], weights)
    return output, largest


def add_observed(observed: torch.Tensor, table: torch.Tensor, amount: torch.Tensor) -> None:
    block_size = observed.shape[2]
    for entry, row in enumerate(amount):
        observed[table[entry // block_size], :, entry % block_size] += row


def test_write_kv_fills_the_named_slots_and_no_others():
    key_cache, value_cache = torch.zeros(5, 2, 8, 4), torch.zeros(5, 2, 8, 4)
    key, value = torch.randn(6, 2, 4), torch.randn(6, 2, 4)
    slots = [39, 0, 8, 17, 16, 31]
    write_kv(key_cache, value_cache, key, value, torch.tensor(slots))
    for cache, written in ((key_cache, key), (value_cache, value)):
        for token, slot in enumerate(slots):
            assert torch.equal(cache[slot // 8, :, slot % 8], written[token])
        assert cache.count_nonzero() == written.count_nonzero()


def test_write_queries_fills_the_named_rows_and_no_others():
    query_slots, query = torch.zeros(3, 4, 2, 5), torch.randn(3, 2, 5)
    write_queries(query_slots, query, torch.tensor([1 * 4 + 3, 0, 2 * 4 + 1]))
    for token, (slot, row) in enumerate([(1, 3), (0, 0), (2, 1)]):
        assert torch.equal(query_slots[slot, row], query[token])
    assert query_slots.count_nonzero() == query.count_nonzero()


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("gather_bytes", [1, 40_000, 4 << 20])
def test_decode_attention_equals_loops(group, block_size, gather_bytes, monkeypatch):
    monkeypatch.setattr(reference, "_GATHER_BYTES", gather_bytes)
    paged = paged_requests([9, 1, 64, block_size, 30, 17], 2, block_size)
    query = torch.randn(6, 2 * group, HEAD_DIM)
    output = paged_decode_attention(
        query, paged.key_cache, paged.value_cache, paged.tables, torch.tensor(paged.lengths), SCALE
    )
    for request in range(6):
        expected, _ = attention_by_loops(query[request], paged.keys[request], paged.values[request])
        torch.testing.assert_close(output[request], expected)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("gather_bytes", [1, 4 << 20])
def test_decode_attention_adds_the_groups_largest_probability(group, gather_bytes, monkeypatch):
    monkeypatch.setattr(reference, "_GATHER_BYTES", gather_bytes)
    paged = paged_requests([9, 1, 40, 16], 2, 8)
    query, lengths = torch.randn(4, 2 * group, HEAD_DIM), torch.tensor(paged.lengths)
    observed = torch.rand(NUM_BLOCKS, 2, 8)
    expected = observed.clone()
    for request in range(4):
        _, largest = attention_by_loops(query[request], paged.keys[request], paged.values[request])
        add_observed(expected, paged.tables[request], largest)
    inputs = (query, paged.key_cache, paged.value_cache, paged.tables, lengths, SCALE)
    output = paged_decode_attention(*inputs, observed)
    torch.testing.assert_close(observed, expected)
    assert torch.equal(output, paged_decode_attention(*inputs))


def test_requests_that_share_a_block_both_add_to_it():
    paged = paged_requests([8], 1, 8)
    query = torch.randn(1, 1, HEAD_DIM)
    observed = torch.zeros(NUM_BLOCKS, 1, 8)
    tables, lengths = paged.tables.repeat(2, 1), torch.tensor([8, 8])
    caches = (paged.key_cache, paged.value_cache)
    paged_decode_attention(query.repeat(2, 1, 1), *caches, tables, lengths, SCALE, observed)
    _, largest = attention_by_loops(query[0], paged.keys[0], paged.values[0])
    torch.testing.assert_close(observed[paged.tables[0, 0]].T, 2 * largest)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(("length", "num_queries"), [(1, 1), (16, 16), (21, 21), (21, 5), (24, 8), (30, 1)])
def test_prefill_attention_equals_loops(group, length, num_queries):
    paged = paged_requests([length], 2, 8)
    query = torch.randn(num_queries, 2 * group, HEAD_DIM)
    output = paged_prefill_attention(query, paged.key_cache, paged.value_cache, paged.tables[0], length, SCALE)
    for offset in range(num_queries):
        seen = length - num_queries + offset + 1
        expected, _ = attention_by_loops(query[offset], paged.keys[0][:seen], paged.values[0][:seen])
        torch.testing.assert_close(output[offset], expected)


@pytest.mark.parametrize("observe_last", [0, 1, 3, 6, 100])
def test_prefill_attention_observes_the_last_queries_of_the_chunk(observe_last):
    paged = paged_requests([21], 2, 8)
    query = torch.randn(6, 4, HEAD_DIM)
    observed = torch.rand(NUM_BLOCKS, 2, 8)
    expected = observed.clone()
    for offset in range(max(0, 6 - observe_last), 6):
        seen = 16 + offset
        _, largest = attention_by_loops(query[offset], paged.keys[0][:seen], paged.values[0][:seen])
        add_observed(expected, paged.tables[0], largest)
    inputs = (query, paged.key_cache, paged.value_cache, paged.tables[0], 21, SCALE)
    output = paged_prefill_attention(*inputs, observed, observe_last)
    torch.testing.assert_close(observed, expected)
    assert torch.equal(output, paged_prefill_attention(*inputs))


@pytest.mark.parametrize("chunks", [[37], [36, 1], [1, 36], [8, 8, 8, 8, 5], [13, 20, 4], [1] * 37])
def test_prefill_does_not_depend_on_chunks(chunks):
    """Neither the output nor the attention observed of the last 16 queries, whatever the pieces."""
    window, length = 16, 37
    paged = paged_requests([length], 2, 8)
    query = torch.randn(length, 4, HEAD_DIM)
    caches = (torch.zeros_like(paged.key_cache), torch.zeros_like(paged.value_cache))
    observed, expected_observed = torch.zeros(NUM_BLOCKS, 2, 8), torch.zeros(NUM_BLOCKS, 2, 8)
    slots = paged.tables[0].repeat_interleave(8)[:length] * 8 + torch.arange(length) % 8
    outputs, start = [], 0
    for size in chunks:
        end = start + size
        write_kv(*caches, paged.keys[0][start:end], paged.values[0][start:end], slots[start:end])
        observe_last = max(0, end - max(start, length - window))
        outputs.append(
            paged_prefill_attention(query[start:end], *caches, paged.tables[0], end, SCALE, observed, observe_last)
        )
        start = end
    whole = (query, paged.key_cache, paged.value_cache, paged.tables[0], length, SCALE)
    torch.testing.assert_close(torch.cat(outputs), paged_prefill_attention(*whole, expected_observed, window))
    torch.testing.assert_close(observed, expected_observed)


def test_low_precision_caches_are_read_in_float32():
    paged = paged_requests([30, 9], 2, 8)
    query, lengths = torch.randn(2, 4, HEAD_DIM).bfloat16(), torch.tensor(paged.lengths)
    caches = (paged.key_cache.bfloat16(), paged.value_cache.bfloat16())
    decoded = paged_decode_attention(query, *caches, paged.tables, lengths, SCALE)
    prefilled = paged_prefill_attention(query[:1], *caches, paged.tables[0], 30, SCALE)
    for output, request in ((decoded[0], 0), (decoded[1], 1), (prefilled[0], 0)):
        keys, values = paged.keys[request].bfloat16().float(), paged.values[request].bfloat16().float()
        expected, _ = attention_by_loops(query[request].float(), keys, values)
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), expected, atol=1e-3, rtol=2**-8)
