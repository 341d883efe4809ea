"""kernels/anchor_score.py against the reference, request by request and layer by layer."""

import pytest
import torch
from random_keys import LOW_PRECISION, NUM_KV_HEADS, NUM_LAYERS, make_keys

from zipage.kernels import reference
from zipage.kernels.anchor_score import anchor_score, prefer

NAN = float("nan")


def run(key_cache, tables, lengths, rests) -> torch.Tensor:
    """Scores, NaN where none have been written."""
    device = key_cache.device
    similarity, anchor = torch.full((2, len(lengths), NUM_LAYERS, NUM_KV_HEADS, max(lengths) + 3), NAN, device=device)
    numbers = [torch.tensor(values, device=device) for values in (lengths, *zip(*rests, strict=True))]
    anchor_score(key_cache, tables, *numbers, similarity, anchor)
    return anchor


@pytest.mark.parametrize("dtype", [torch.float32, LOW_PRECISION])
@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 16), (80, 8), (96, 32), (128, 256), (256, 64)])
def test_anchor_score_equals_the_reference(device, dtype, head_dim, block_size):
    lengths, rests = [280, 70, 40, 1], [(4, 264), (33, 70), (12, 12), (0, 1)]
    key_cache, tables = make_keys(device, lengths, head_dim, block_size, dtype)
    anchor = run(key_cache, tables, lengths, rests)
    for request, (first, last) in enumerate(rests):
        for layer in range(NUM_LAYERS if first < last else 0):
            keys = reference.gather_entries(key_cache[layer], tables[request], lengths[request])
            expected = reference.anchor_score(keys, first, last)
            torch.testing.assert_close(
                anchor[request, layer, :, first:last], expected, atol=1.01 / reference.ANCHOR_STEPS, rtol=0
            )


def test_an_entry_that_is_said_again_is_no_anchor(device):
    key_cache, tables = make_keys(device, [60], 64, 16, torch.float32)
    table, place = tables[0], 20
    # Entry 20 is the longest of all, and entry 50 says the same.
    key_cache[:, table[1], :, 4] *= 50
    alone = run(key_cache, tables, [60], [(0, 48)])
    key_cache[:, table[3], :, 2] = key_cache[:, table[1], :, 4] / 100
    again = run(key_cache, tables, [60], [(0, 48)])
    assert (alone[0, :, :, :48].argmax(-1) == place).all()
    assert (again[0, :, :, place] < alone[0, :, :, place] - 0.5).all()


def test_equal_keys_score_alike_and_finite(device):
    key_cache = torch.ones(NUM_LAYERS, 2, NUM_KV_HEADS, 8, 64, device=device)
    anchor = run(key_cache, torch.tensor([[1, 0]], device=device), [16], [(0, 12)])
    assert anchor[..., :12].isfinite().all()
    assert (anchor[..., :12] == anchor[..., :1]).all()


def test_prefer_writes_the_first_places_only(device):
    kept = torch.tensor([[2, 0, 5], [1, 3, 4]], dtype=torch.int32, device=device)[:, None, None]
    final = torch.zeros(2, 1, 1, 6, device=device)
    prefer(kept.contiguous(), torch.tensor([2, 0], device=device), final)
    assert final[0, 0, 0].tolist() == [torch.inf, 0, torch.inf, 0, 0, 0]
    assert final[1].count_nonzero() == 0


@pytest.mark.parametrize(
    ("field", "key_cache", "anchor"),
    [
        ("key_cache", torch.zeros(1, 2, 1, 8, 64).mT, torch.zeros(1, 1, 1, 8)),
        ("anchor", torch.zeros(1, 2, 1, 8, 64), torch.zeros(1, 2, 1, 8)),
        ("anchor", torch.zeros(1, 2, 1, 8, 64), torch.zeros(1, 1, 1, 8).half()),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(device, field, key_cache, anchor):
    one = torch.ones(1, dtype=torch.int64, device=device)
    similarity = torch.zeros(1, 1, 1, 8, device=device)
    with pytest.raises(ValueError, match=f"{field} must be"):
        anchor_score(key_cache.to(device), one[:, None], one, one, one, similarity, anchor.to(device))


def test_prefer_refuses_other_shapes(device):
    kept, count = torch.zeros(1, 1, 1, 2, device=device), torch.ones(1, device=device)
    with pytest.raises(ValueError, match="kept must be int32"):
        prefer(kept, count, torch.zeros(1, 1, 1, 4, device=device))
    with pytest.raises(ValueError, match="final must be"):
        prefer(kept.int(), count, torch.zeros(2, 1, 1, 4, device=device))
