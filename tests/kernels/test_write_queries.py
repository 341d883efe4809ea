"""Recording queries against kernels/reference.py: the same bits."""

import pytest
import torch

from zipage.kernels import reference
from zipage.kernels.write_queries import write_queries


@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 16), (3, 80), (32, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference(num_heads, head_dim, dtype, device):
    torch.manual_seed(head_dim)
    slots = torch.full((3, 4, num_heads, head_dim), torch.nan, dtype=dtype, device=device)
    query = torch.randn(9, num_heads, head_dim, device=device).to(dtype)
    tokens, rows = torch.tensor([8, 0, 3, 3], device=device), torch.tensor([11, 4, 0, 6], device=device)
    expected = slots.clone()
    reference.write_queries(expected, query[tokens], rows)
    write_queries(slots, query, tokens, rows)
    torch.testing.assert_close(slots, expected, atol=0, rtol=0, equal_nan=True)


def test_row_minus_one_writes_nothing(device):
    slots = torch.full((2, 3, 4, 16), torch.nan, device=device)
    query = torch.randn(4, 4, 16, device=device)
    tokens, rows = torch.tensor([1 << 40, 2, 1 << 40], device=device), torch.tensor([-1, 5, -1], device=device)
    write_queries(slots, query, tokens, rows)
    assert torch.equal(slots[1, 2], query[2])
    assert slots.isnan().sum() == slots.numel() - 4 * 16


def test_takes_strided_tokens_and_small_integers(device):
    slots = torch.zeros(2, 3, 4, 16, device=device)
    packed = torch.randn(5, 6, 16, device=device)
    tokens, rows = torch.tensor([4, 1], device=device).int(), torch.tensor([0, 3], device=device).int()
    write_queries(slots, packed[:, :4], tokens, rows)
    assert torch.equal(slots.view(6, 4, 16)[[0, 3]], packed[[4, 1], :4])
    assert slots.count_nonzero() == packed[[4, 1], :4].count_nonzero()


def test_no_tokens(device):
    slots = torch.zeros(2, 3, 4, 16, device=device)
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    write_queries(slots, torch.ones(5, 4, 16, device=device), nothing, nothing)
    assert not slots.any()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query_slots", lambda slots, *rest: (slots[0], *rest)),
        ("query_slots", lambda slots, *rest: (slots[:, 1:], *rest)),
        ("query", lambda slots, query, *rest: (slots, query[:, 1:], *rest)),
        ("query", lambda slots, query, *rest: (slots, query.half(), *rest)),
        ("tokens", lambda slots, query, tokens, rows: (slots, query, tokens.float(), rows)),
        ("rows", lambda slots, query, tokens, rows: (slots, query, tokens, rows[:, None])),
        ("tokens and rows", lambda slots, query, tokens, rows: (slots, query, tokens[1:], rows)),
    ],
)
def test_wrong_arguments_are_named(name, change, device):
    slots, query = torch.zeros(2, 3, 4, 16, device=device), torch.zeros(5, 4, 16, device=device)
    tokens, rows = torch.tensor([0, 1], device=device), torch.tensor([2, 3], device=device)
    with pytest.raises(ValueError, match=name):
        write_queries(*change(slots, query, tokens, rows))
