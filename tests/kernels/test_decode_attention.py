"""Paged decode attention against kernels/reference.py."""

import pytest
import torch

from zipage.kernels import reference
from zipage.kernels.decode_attention import DecodeWorkspace, decode_workspace, paged_decode_attention

SCALE = 0.15
# Triton's interpreter multiplies the bit patterns of bfloat16.
LOW_PRECISION = torch.bfloat16 if torch.cuda.is_available() else torch.float16
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def workspace_of(query, num_kv_heads, num_multiprocessors) -> DecodeWorkspace:
    """A workspace for a device of some multiprocessors; what is written first is poisoned."""
    _, num_heads, head_dim = query.shape
    num_programs = 4 * num_multiprocessors
    parts = (num_programs, 2, num_heads // num_kv_heads)
    return DecodeWorkspace(
        num_multiprocessors,
        counters=torch.zeros(num_programs, dtype=torch.int32, device=query.device),
        log_sum_exp=torch.full(parts, torch.nan, device=query.device),
        output=torch.full((*parts, head_dim), torch.nan, device=query.device),
    )


def expected_output(query, cache, observed=None) -> torch.Tensor:
    """The reference's output, zeros for requests without entries."""
    held = cache.lengths > 0
    output = torch.zeros_like(query)
    output[held] = reference.paged_decode_attention(
        query[held], *cache.readable(), cache.tables[held].long(), cache.lengths[held].long(), SCALE, observed
    )
    return output


@pytest.mark.parametrize(
    ("group", "block_size", "head_dim", "dtype"),
    [
        (1, 8, 64, torch.float32),
        (2, 16, 128, LOW_PRECISION),
        (3, 32, 80, torch.float32),
        (4, 64, 96, torch.float16),
        (4, 128, 128, torch.float32),
        (5, 16, 16, torch.float32),
        (7, 256, 64, LOW_PRECISION),
        (8, 16, 256, LOW_PRECISION),
        (20, 8, 32, torch.float32),
    ],
)
def test_equals_the_reference(group, block_size, head_dim, dtype, device, paged_cache):
    cache = paged_cache([290, 1, 0, block_size, 37, block_size + 1], 2, block_size, head_dim, dtype)
    query = torch.randn(6, 2 * group, head_dim, device=device).to(dtype)
    workspace = decode_workspace(2 * group, 2, head_dim, device)
    output = paged_decode_attention(query, cache.key, cache.value, cache.tables, cache.lengths, SCALE, workspace)
    torch.testing.assert_close(output, expected_output(query, cache), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert not workspace.counters.any()


@pytest.mark.parametrize("lengths", [[1300], [520, 290, 1], [257, 0, 256, 255]])
@pytest.mark.parametrize("num_multiprocessors", [1, 2, 3, 40])
def test_any_split_of_the_entries_combines_to_the_same(lengths, num_multiprocessors, device, paged_cache):
    cache = paged_cache(lengths, 2, 16, 32)
    query = torch.randn(len(lengths), 6, 32, device=device)
    workspace = workspace_of(query, 2, num_multiprocessors)
    inputs = (query, cache.key, cache.value, cache.tables, cache.lengths, SCALE, workspace)
    output = paged_decode_attention(*inputs)
    torch.testing.assert_close(output, expected_output(query, cache), atol=2e-5, rtol=2e-5)
    assert not workspace.counters.any()
    assert torch.equal(output, paged_decode_attention(*inputs))


@pytest.mark.parametrize(
    ("lengths", "num_multiprocessors"),
    [([900, 1000, 961, 1024], 2), ([300, 290, 310, 0], 2), ([1024, 1000], 4), ([600, 610, 640], 4)],
)
def test_lengths_that_differ_little_are_not_combined(lengths, num_multiprocessors, device, paged_cache):
    cache = paged_cache(lengths, 2, 16, 64)
    query = torch.randn(len(lengths), 6, 64, device=device)
    workspace = workspace_of(query, 2, num_multiprocessors)
    observed = torch.zeros(cache.key.shape[:3], device=device)
    expected_observed = observed.clone()
    output = paged_decode_attention(
        query, cache.key, cache.value, cache.tables, cache.lengths, SCALE, workspace, observed
    )
    torch.testing.assert_close(output, expected_output(query, cache, expected_observed), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(observed, expected_observed, atol=1e-6, rtol=1e-5)
    assert workspace.output.isnan().all()


@pytest.mark.parametrize(
    ("lengths", "num_multiprocessors"),
    [([1024, 1000, 300, 200], 2), ([1024, 1000, 961, 1024, 980], 1), ([1024, 1000], 12)],
)
def test_long_heads_and_heads_without_a_program_are_combined(lengths, num_multiprocessors, device, paged_cache):
    cache = paged_cache(lengths, 2, 16, 64)
    query = torch.randn(len(lengths), 6, 64, device=device)
    workspace = workspace_of(query, 2, num_multiprocessors)
    output = paged_decode_attention(query, cache.key, cache.value, cache.tables, cache.lengths, SCALE, workspace)
    torch.testing.assert_close(output, expected_output(query, cache), atol=2e-5, rtol=2e-5)
    assert not workspace.output.isnan().all()


@pytest.mark.parametrize("lengths", [[0, 0, 700, 0, 130, 0, 0, 0], [0] * 9 + [1000, 0], [0] * 30])
@pytest.mark.parametrize("num_multiprocessors", [1, 3])
def test_empty_requests_among_others_are_zeros(lengths, num_multiprocessors, device, paged_cache):
    cache = paged_cache(lengths, 2, 16, 80)
    query = torch.randn(len(lengths), 6, 80, device=device)
    workspace = workspace_of(query, 2, num_multiprocessors)
    output = torch.full((len(lengths) + 2, 8, 80), torch.nan, device=device)
    inputs = (query, cache.key, cache.value, cache.tables, cache.lengths, SCALE, workspace)
    paged_decode_attention(*inputs, output=output[1:-1, :6])
    torch.testing.assert_close(output[1:-1, :6], expected_output(query, cache), atol=2e-5, rtol=2e-5)
    assert output[1:-1, 6:].isnan().all()
    assert output[[0, -1]].isnan().all()


@pytest.mark.parametrize(("group", "block_size", "head_dim"), [(1, 8, 64), (2, 16, 128), (3, 256, 80), (8, 32, 16)])
def test_adds_the_groups_largest_probability(group, block_size, head_dim, device, paged_cache):
    cache = paged_cache([290, 0, 1, block_size, 70], 2, block_size, head_dim)
    query = torch.randn(5, 2 * group, head_dim, device=device)
    inputs = (query, cache.key, cache.value, cache.tables, cache.lengths, SCALE)
    workspace = workspace_of(query, 2, 5)
    observed = torch.rand(cache.key.shape[:3], device=device)
    expected = observed.clone()
    expected_output(query, cache, expected)
    before = observed.clone()
    output = paged_decode_attention(*inputs, workspace, observed)
    torch.testing.assert_close(observed, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(observed[~cache.owned()], before[~cache.owned()])
    assert torch.equal(output, paged_decode_attention(*inputs, workspace))


def test_observes_low_precision(device, paged_cache):
    cache = paged_cache([150, 90], 2, 16, 64, LOW_PRECISION)
    query = torch.randn(2, 8, 64, device=device).to(LOW_PRECISION)
    observed = torch.zeros(cache.key.shape[:3], device=device)
    expected = observed.clone()
    expected_output(query, cache, expected)
    inputs = (query, cache.key, cache.value, cache.tables, cache.lengths, SCALE)
    paged_decode_attention(*inputs, decode_workspace(8, 2, 64, device), observed)
    torch.testing.assert_close(observed, expected, atol=1e-6, rtol=1e-4)


def test_requests_that_share_a_block_both_add_to_it(device, paged_cache):
    cache = paged_cache([16], 1, 16, 32)
    query = torch.randn(1, 2, 32, device=device).repeat(3, 1, 1)
    tables, lengths = cache.tables.repeat(3, 1), cache.lengths.repeat(3)
    observed = torch.zeros(cache.key.shape[:3], device=device)
    inputs = (query, cache.key, cache.value, tables, lengths, SCALE, decode_workspace(2, 1, 32, device))
    paged_decode_attention(*inputs, observed)
    expected = torch.zeros_like(observed)
    reference.paged_decode_attention(query, *cache.readable(), tables, lengths, SCALE, expected)
    torch.testing.assert_close(observed, expected)


def test_empty_rows_are_zeros_and_touch_nothing(device, paged_cache):
    cache = paged_cache([0, 0, 0], 2, 16, 64)
    query = torch.ones(3, 4, 64, device=device)
    observed = torch.full(cache.key.shape[:3], 0.5, device=device)
    output = torch.full_like(query, torch.nan)
    tables = torch.full_like(cache.tables, 1 << 40)
    workspace = decode_workspace(4, 2, 64, device)
    inputs = (query, cache.key, cache.value, tables, cache.lengths, SCALE, workspace)
    assert paged_decode_attention(*inputs, observed, output) is output
    assert torch.equal(output, torch.zeros_like(output))
    assert torch.equal(observed, torch.full_like(observed, 0.5))


def test_takes_strided_tokens_and_small_integers(device, paged_cache):
    cache = paged_cache([40, 3, 65], 2, 8, 64, table_dtype=torch.int32)
    packed = torch.randn(3, 4 + 2 * 2, 64, device=device)
    query = packed[:, :4]
    whole = torch.full((5, 6, 64), torch.nan, device=device)
    output = whole[1:4, :4]
    workspace = decode_workspace(4, 2, 64, device)
    inputs = (query, cache.key, cache.value, cache.tables, cache.lengths, SCALE, workspace)
    paged_decode_attention(*inputs, output=output)
    torch.testing.assert_close(output, expected_output(query, cache), atol=2e-5, rtol=2e-5)
    assert whole.isnan().sum() == whole.numel() - output.numel()


def test_tables_may_be_a_part_of_wider_ones(device, paged_cache):
    cache = paged_cache([40, 3, 65], 1, 8, 16)
    wide = torch.full((3, 50), 1 << 40, device=device)
    wide[:, : cache.tables.shape[1]] = cache.tables
    query = torch.randn(3, 2, 16, device=device)
    workspace = decode_workspace(2, 1, 16, device)
    output = paged_decode_attention(query, cache.key, cache.value, wide[:, :20], cache.lengths, SCALE, workspace)
    torch.testing.assert_close(output, expected_output(query, cache), atol=2e-5, rtol=2e-5)


def test_reads_beyond_two_to_the_31_elements(device):
    block_size, head_dim = 256, 256
    num_blocks = (1 << 31) // (block_size * head_dim) + 2
    # Only what is written takes memory on a CPU.
    cache = torch.empty(num_blocks, 1, block_size, head_dim, dtype=LOW_PRECISION, device=device)
    cache[-1] = torch.randn(block_size, head_dim)
    tables = torch.tensor([[num_blocks - 1]], device=device)
    query = torch.randn(1, 2, head_dim, device=device).to(LOW_PRECISION)
    workspace = decode_workspace(2, 1, head_dim, device)
    lengths = torch.tensor([20], device=device)
    output = paged_decode_attention(query, cache, cache, tables, lengths, 0.05, workspace)
    last = cache[-1:]
    expected = reference.paged_decode_attention(query, last, last, torch.zeros_like(tables), lengths, 0.05)
    torch.testing.assert_close(output, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", lambda query, *rest: (query[:, :3], *rest)),
        ("query", lambda query, *rest: (query.half(), *rest)),
        ("query", lambda query, *rest: (query.transpose(1, 2).contiguous().transpose(1, 2), *rest)),
        ("key_cache", lambda query, key, *rest: (query, key.double(), *rest)),
        ("key_cache", lambda query, key, *rest: (query, key.transpose(1, 2), *rest)),
        (
            "block size of key_cache",
            lambda query, key, value, *rest: (query, key[:, :, :12].clone(), value[:, :, :12].clone(), *rest),
        ),
        (
            "head size of key_cache",
            lambda query, key, value, *rest: (query, key[..., :12].clone(), value[..., :12].clone(), *rest),
        ),
        ("value_cache", lambda query, key, value, *rest: (query, key, value[1:], *rest)),
        ("block_tables", lambda q, k, v, tables, lengths, *rest: (q, k, v, tables[1:], lengths[1:], *rest)),
        ("block_tables", lambda q, k, v, tables, *rest: (q, k, v, tables.float(), *rest)),
        ("resident_lengths", lambda q, k, v, t, lengths, *rest: (q, k, v, t, lengths[1:], *rest)),
        ("workspace", lambda *inputs: (*inputs[:6], decode_workspace(8, 2, 16, inputs[0].device))),
        ("observed", lambda *inputs: (*inputs, torch.zeros(3, device=inputs[0].device))),
        ("output", lambda *inputs: (*inputs, None, inputs[0][:1])),
    ],
)
def test_wrong_arguments_are_named(name, change, device, paged_cache):
    cache = paged_cache([9, 4], 2, 16, 16)
    query, workspace = torch.randn(2, 4, 16, device=device), decode_workspace(4, 2, 16, device)
    inputs = (query, cache.key.nan_to_num(), cache.value.nan_to_num(), cache.tables, cache.lengths, SCALE, workspace)
    with pytest.raises(ValueError, match=name):
        paged_decode_attention(*change(*inputs))
