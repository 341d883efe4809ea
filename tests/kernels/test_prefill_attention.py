"""Paged prefill attention against kernels/reference.py, chunk by chunk."""

import pytest
import torch

from zipage.kernels import reference
from zipage.kernels.prefill_attention import paged_prefill_attention

SCALE = 0.15
# Triton's interpreter multiplies the bit patterns of bfloat16.
LOW_PRECISION = torch.bfloat16 if torch.cuda.is_available() else torch.float16
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def cumulative(sizes, device, dtype=torch.int32) -> torch.Tensor:
    return torch.tensor([0, *sizes], device=device).cumsum(0).to(dtype)


def expected_output(query, cache, sizes, observed=None, observe_last=None) -> torch.Tensor:
    """The reference's output of every chunk in turn; it adds to `observed`."""
    output = torch.full_like(query, torch.nan)
    starts = cumulative(sizes, "cpu").tolist()
    for chunk, (start, size) in enumerate(zip(starts[:-1], sizes, strict=True)):
        output[start : start + size] = reference.paged_prefill_attention(
            query[start : start + size],
            *cache.readable(),
            cache.tables[chunk].long(),
            int(cache.lengths[chunk]),
            SCALE,
            observed,
            0 if observe_last is None else observe_last[chunk],
        )
    return output


@pytest.mark.parametrize(
    ("group", "block_size", "head_dim", "dtype"),
    [
        (1, 8, 64, torch.float32),
        (2, 16, 128, LOW_PRECISION),
        (3, 32, 80, torch.float32),
        (4, 256, 96, LOW_PRECISION),
        (5, 128, 128, LOW_PRECISION),
        (7, 16, 64, LOW_PRECISION),
        (8, 64, 256, LOW_PRECISION),
        (2, 8, 256, torch.float32),
    ],
)
def test_equals_the_reference(group, block_size, head_dim, dtype, device, paged_cache):
    """A whole prompt, a chunk after others, one token, a chunk that fills its block, and a prompt of one token."""
    lengths, sizes = [60, 200, 41, 2 * block_size, 1], [60, 33, 1, min(20, block_size), 1]
    cache = paged_cache(lengths, 2, block_size, head_dim, dtype)
    query = torch.randn(sum(sizes), 2 * group, head_dim, device=device).to(dtype)
    seqlens = cumulative(sizes, device)
    output = paged_prefill_attention(query, cache.key, cache.value, seqlens, cache.tables, cache.lengths, SCALE)
    expected = expected_output(query, cache, sizes)
    torch.testing.assert_close(output, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("group", [3, 40])
@pytest.mark.parametrize("sizes", [[1], [30], [15, 17], [0, 21, 0], [2] * 9])
def test_any_sizes_of_chunks(sizes, group, device, paged_cache):
    cache = paged_cache([size + 7 * chunk for chunk, size in enumerate(sizes)], 1, 8, 32)
    query = torch.randn(sum(sizes), group, 32, device=device)
    seqlens = cumulative(sizes, device)
    output = paged_prefill_attention(query, cache.key, cache.value, seqlens, cache.tables, cache.lengths, SCALE)
    torch.testing.assert_close(output, expected_output(query, cache, sizes), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("group", "block_size", "head_dim", "dtype"),
    [(1, 8, 64, torch.float32), (3, 16, 80, LOW_PRECISION), (4, 128, 128, LOW_PRECISION), (2, 16, 256, LOW_PRECISION)],
)
def test_observes_the_last_queries_of_chunks(group, block_size, head_dim, dtype, device, paged_cache):
    lengths, sizes, observe_last = [60, 140, 20, 33], [60, 21, 20, 3], [50, 3, 0, 16]
    cache = paged_cache(lengths, 2, block_size, head_dim, dtype)
    query = torch.randn(sum(sizes), 2 * group, head_dim, device=device).to(dtype)
    inputs = (query, cache.key, cache.value, cumulative(sizes, device), cache.tables, cache.lengths, SCALE)
    observed = torch.rand(cache.key.shape[:3], device=device)
    before, expected = observed.clone(), observed.clone()
    expected_output(query, cache, sizes, expected, observe_last)
    output = paged_prefill_attention(*inputs, observed, torch.tensor(observe_last, device=device))
    torch.testing.assert_close(observed, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(observed[~cache.owned()], before[~cache.owned()])
    assert torch.equal(output, paged_prefill_attention(*inputs))


def test_chunks_that_share_blocks_all_add_to_them(device, paged_cache):
    """Two requests with the same first two blocks, of 16 entries each."""
    cache = paged_cache([37, 45], 2, 16, 32)
    cache.tables[1, :2] = cache.tables[0, :2]
    sizes, observe_last = [5, 20], [5, 7]
    query = torch.randn(25, 4, 32, device=device)
    inputs = (query, cache.key, cache.value, cumulative(sizes, device), cache.tables, cache.lengths, SCALE)
    observed = torch.zeros(cache.key.shape[:3], device=device)
    expected = observed.clone()
    expected_output(query, cache, sizes, expected, observe_last)
    paged_prefill_attention(*inputs, observed, torch.tensor(observe_last, device=device))
    torch.testing.assert_close(observed, expected, atol=1e-5, rtol=1e-4)


def test_takes_strided_tokens_and_leaves_padding_alone(device, paged_cache):
    cache = paged_cache([20, 41], 2, 8, 64, table_dtype=torch.int32)
    sizes = [20, 9]
    packed = torch.randn(33, 4 + 2 * 2, 64, device=device)
    whole = torch.full((33, 6, 64), torch.nan, device=device)
    query, output = packed[:, :4], whole[:, :4]
    inputs = (query, cache.key, cache.value, cumulative(sizes, device, torch.int64), cache.tables, cache.lengths, SCALE)
    assert paged_prefill_attention(*inputs, output=output) is output
    torch.testing.assert_close(output[:29], expected_output(query[:29], cache, sizes), atol=2e-5, rtol=2e-5)
    assert whole.isnan().sum() == whole.numel() - output[:29].numel()


def test_places_past_a_requests_blocks_are_not_read(device, paged_cache):
    cache = paged_cache([20, 150], 1, 8, 16)
    sizes = [20, 9]
    tables = torch.full((2, 40), 1 << 40, device=device)
    for request, length in enumerate([20, 150]):
        tables[request, : -(-length // 8)] = cache.tables[request, : -(-length // 8)]
    query = torch.randn(29, 2, 16, device=device)
    observed = torch.zeros(cache.key.shape[:3], device=device)
    observe_last = torch.tensor(sizes, device=device)
    inputs = (query, cache.key, cache.value, cumulative(sizes, device), tables, cache.lengths, SCALE)
    output = paged_prefill_attention(*inputs, observed, observe_last)
    torch.testing.assert_close(output, expected_output(query, cache, sizes), atol=2e-5, rtol=2e-5)
    expected = torch.zeros_like(observed)
    expected_output(query, cache, sizes, expected, sizes)
    torch.testing.assert_close(observed, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", lambda inputs: inputs | {"query": inputs["query"][:, :3]}),
        ("query", lambda inputs: inputs | {"query": inputs["query"].half()}),
        ("value_cache", lambda inputs: inputs | {"value_cache": inputs["value_cache"][1:]}),
        ("cu_seqlens", lambda inputs: inputs | {"cu_seqlens": inputs["cu_seqlens"][1:]}),
        ("block_tables", lambda inputs: inputs | {"block_tables": inputs["block_tables"][0]}),
        ("resident_lengths", lambda inputs: inputs | {"resident_lengths": inputs["resident_lengths"].float()}),
        ("scale", lambda inputs: inputs | {"scale": 0.0}),
        ("observe_last", lambda inputs: inputs | {"observed": torch.zeros_like(inputs["key_cache"][..., 0])}),
        ("observe_last", lambda inputs: inputs | {"observe_last": inputs["resident_lengths"]}),
        ("output", lambda inputs: inputs | {"output": inputs["query"][:1]}),
    ],
)
def test_wrong_arguments_are_named(name, change, device, paged_cache):
    cache = paged_cache([9, 4], 2, 16, 16)
    inputs = {
        "query": torch.randn(13, 4, 16, device=device),
        "key_cache": cache.key,
        "value_cache": cache.value,
        "cu_seqlens": cumulative([9, 4], device),
        "block_tables": cache.tables,
        "resident_lengths": cache.lengths,
        "scale": SCALE,
    }
    with pytest.raises(ValueError, match=name):
        paged_prefill_attention(**change(inputs))
