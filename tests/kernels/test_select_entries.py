"""kernels/select_entries.py against the reference: the same entries, one for one."""

import pytest
import torch

from zipage.eviction.selection import entry_tiers
from zipage.kernels import reference, select_entries

NUM_LAYERS, NUM_KV_HEADS = 2, 1
NOT_WRITTEN = -7


def run(final, lengths, keep, sinks, recent, num_pinned) -> torch.Tensor:
    """Select with NaN, which ranks above everything, in all places that no request has."""
    device = final.device
    for request, length in enumerate(lengths):
        final[request, :, :, length:] = float("nan")
    kept = torch.full((*final.shape[:3], max(*keep, 1) + 2), NOT_WRITTEN, dtype=torch.int32, device=device)
    numbers = [torch.tensor(values, device=device) for values in (lengths, keep, recent, num_pinned)]
    select_entries.select_entries(final, numbers[0], numbers[1], sinks, numbers[2], numbers[3], kept)
    return kept


def check(final, lengths, keep, sinks, recent, num_pinned) -> None:
    kept = run(final, lengths, keep, sinks, recent, num_pinned)
    for request, length in enumerate(lengths):
        tiers = entry_tiers(length, sinks, recent[request], num_pinned[request], final.device)
        for layer in range(NUM_LAYERS):
            own = final[request, layer, :, :length]
            expected = reference.select_entries(own, keep[request], tiers).int()
            assert torch.equal(kept[request, layer, :, : keep[request]], expected)
        assert (kept[request, :, :, keep[request] :] == NOT_WRITTEN).all()


def scores(kind: str, num_requests: int, num_entries: int, device: torch.device) -> torch.Tensor:
    shape = (num_requests, NUM_LAYERS, NUM_KV_HEADS, num_entries)
    values = {
        "random": torch.randn(shape),
        "tiny": torch.rand(shape) * 1e-42,
        "probabilities": torch.randn(shape).mul(3).softmax(-1),
        "ties": torch.randint(-2, 3, shape) / 4,
        "zeros": torch.where(torch.rand(shape) < 0.5, -0.0, 0.0),
        "infinite": torch.tensor([-torch.inf, -3e38, -0.0, 0.0, 1e-45, 3e38, torch.inf])[torch.randint(7, shape)],
    }
    return values[kind].to(device)


@pytest.mark.parametrize("kind", ["random", "tiny", "probabilities", "ties", "zeros", "infinite"])
@pytest.mark.parametrize("largest_tile", [64, 16384])
def test_selection_equals_the_reference(device, kind, largest_tile, monkeypatch):
    """In one tile or in many, where almost all and where few survive, where the tiers decide and where they do not."""
    monkeypatch.setattr(select_entries, "_SMALLEST_TILE", 64)
    monkeypatch.setattr(select_entries, "_LARGEST_TILE", largest_tile)
    torch.manual_seed(len(kind))
    lengths, keep = [150, 64, 100, 33], [120, 63, 7, 20]
    check(scores(kind, 4, 150, device), lengths, keep, sinks=4, recent=[16, 32, 3, 0], num_pinned=[0, 20, 90, 9])


@pytest.mark.parametrize("keep", [1, 5, 12, 19, 20, 30, 31, 49, 50])
def test_every_tier_can_be_the_one_that_is_cut(device, keep):
    """12 entries are always kept and 19 more are pinned."""
    torch.manual_seed(keep)
    check(scores("ties", 1, 50, device), [50], [keep], sinks=4, recent=[8], num_pinned=[23])


@pytest.mark.parametrize(
    ("sinks", "recent", "num_pinned"),
    [(0, 0, 0), (0, 5, 0), (30, 0, 3), (20, 20, 0), (4, 40, 0), (4, 4, 40), (2, 9, 28)],
)
def test_tiers_may_overlap_and_reach_past_the_entries(device, sinks, recent, num_pinned):
    torch.manual_seed(sinks)
    check(scores("random", 2, 31, device), [31, 17], [11, 17], sinks, [recent, recent], [num_pinned, num_pinned])


def test_one_entry_and_nothing_to_keep(device):
    check(scores("random", 3, 4, device), [1, 4, 0], [1, 0, 0], 0, [0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("final", {"final": torch.zeros(1, 1, 1, 8, dtype=torch.float64)}),
        ("kept", {"kept": torch.zeros(1, 1, 1, 8, dtype=torch.int64)}),
        ("kept", {"kept": torch.zeros(2, 1, 1, 8, dtype=torch.int32)}),
        ("sinks", {"sinks": -1}),
    ],
)
def test_wrong_arguments_are_named(field, change):
    one = torch.ones(1, dtype=torch.int64)
    arguments = {
        "final": torch.zeros(1, 1, 1, 8),
        "num_entries": one,
        "keep": one,
        "sinks": 0,
        "recent": one,
        "num_pinned": one,
        "kept": torch.zeros(1, 1, 1, 8, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=field):
        select_entries.select_entries(**(arguments | change))
