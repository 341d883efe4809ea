"""kernels/redundancy.py against the reference, request by request and layer by layer."""

import pytest
import torch
from random_keys import LOW_PRECISION, NUM_KV_HEADS, NUM_LAYERS, make_keys

from zipage.kernels import redundancy, reference

NAN = float("nan")
TEMPERATURE = 0.05


def check(similarity_of, expected_of, device, lengths, head_dim, block_size, dtype, spread=1.0, tau=0.5) -> None:
    """Compare the redundancy that `combine` makes of a similarity, as the reference has no similarities."""
    key_cache, tables = make_keys(device, lengths, head_dim, block_size, dtype, spread)
    num_entries = torch.tensor(lengths, device=device)
    similarity = torch.full((len(lengths), NUM_LAYERS, NUM_KV_HEADS, max(lengths) + 3), NAN, device=device)
    similarity_of(key_cache, tables, num_entries, tau, similarity)
    final = torch.full_like(similarity, NAN)
    redundancy.combine(torch.zeros_like(final), similarity, num_entries, TEMPERATURE, 0.0, final)
    for request, length in enumerate(lengths):
        for layer in range(NUM_LAYERS if length else 0):
            expected = expected_of(reference.gather_entries(key_cache[layer], tables[request], length), tau)
            torch.testing.assert_close(-final[request, layer, :, :length], expected, atol=1e-7, rtol=2e-4)
        assert similarity[request, :, :, length:].isnan().all()
        assert final[request, :, :, length:].isnan().all()


def full(keys: torch.Tensor, tau: float) -> torch.Tensor:
    return reference.redundancy_full(keys, tau, TEMPERATURE)


@pytest.mark.parametrize("dtype", [torch.float32, LOW_PRECISION])
@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 16), (80, 8), (256, 64)])
def test_full_similarity_equals_the_reference(device, dtype, head_dim, block_size):
    lengths = [70, 5, 1, 0] if dtype == torch.float32 else [140, 2, 1]
    check(redundancy.full_similarity, full, device, lengths, head_dim, block_size, dtype)


@pytest.mark.parametrize(
    ("head_dim", "block_size", "dtype"),
    [
        (64, 8, torch.float32),
        (80, 16, torch.float32),
        (128, 64, torch.float32),
        (80, 8, LOW_PRECISION),
        (64, 16, LOW_PRECISION),
        (96, 64, LOW_PRECISION),
        (128, 128, LOW_PRECISION),
        (64, 256, LOW_PRECISION),
        (256, 256, LOW_PRECISION),
    ],
)
def test_lightning_similarity_equals_the_reference(device, head_dim, block_size, dtype):
    def lightning(keys: torch.Tensor, tau: float) -> torch.Tensor:
        return reference.redundancy_lightning(keys, block_size, tau, TEMPERATURE)

    lengths = [block_size + 3, 20, 1, 0]
    check(redundancy.lightning_similarity, lightning, device, lengths, head_dim, block_size, dtype)


@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("tau", [-1.0, 0.0, 0.9])
def test_any_share_of_the_keys_may_be_similar(device, spread, tau):
    check(redundancy.full_similarity, full, device, [90], 64, 16, LOW_PRECISION, spread, tau)


def test_keys_of_length_zero_are_like_no_other(device):
    key_cache = torch.randn(1, 2, 1, 8, 64, device=device)
    key_cache[0, 1, 0, 2:5] = 0
    tables, num_entries = torch.tensor([[1, 0]], device=device), torch.tensor([13], device=device)
    similarity = torch.full((1, 1, 1, 13), NAN, device=device)
    redundancy.full_similarity(key_cache, tables, num_entries, 0.0, similarity)
    assert (similarity[0, 0, 0, 2:5] == 0).all()
    assert similarity.isfinite().all()


@pytest.mark.parametrize("tile", [64, 2048])
def test_combine_may_write_over_its_inputs(device, tile, monkeypatch):
    monkeypatch.setattr(redundancy, "_SOFTMAX_TILE", tile)
    torch.manual_seed(2)
    score, similarity = torch.rand(2, 2, 1, 2, 100, device=device)
    similarity = similarity.sort().values  # so that a later tile has a larger one
    lengths = torch.tensor([100, 33], device=device)
    expected = [
        reference.combine(score[request, 0, :, :n], (similarity[request, 0, :, :n] / 0.4).softmax(-1), 0.3)
        for request, n in enumerate(lengths.tolist())
    ]
    for final in (similarity.clone(), score):
        redundancy.combine(score, final if final is not score else similarity, lengths, 0.4, 0.3, final)
        for request, n in enumerate(lengths.tolist()):
            torch.testing.assert_close(final[request, 0, :, :n], expected[request])


@pytest.mark.parametrize(
    ("field", "key_cache", "similarity"),
    [
        ("key_cache", torch.zeros(1, 2, 1, 8, 64).mT, torch.zeros(1, 1, 1, 8)),
        ("similarity", torch.zeros(1, 2, 1, 8, 64), torch.zeros(1, 2, 1, 8)),
        ("similarity", torch.zeros(1, 2, 1, 8, 64), torch.zeros(1, 1, 1, 8).half()),
    ],
)
@pytest.mark.parametrize("similarity_of", [redundancy.full_similarity, redundancy.lightning_similarity])
def test_wrong_arguments_are_named(similarity_of, field, key_cache, similarity):
    with pytest.raises(ValueError, match=field):
        similarity_of(key_cache, torch.zeros(1, 1), torch.ones(1), 0.5, similarity)


@pytest.mark.parametrize("field", ["similarity", "final"])
def test_wrong_arguments_of_combine_are_named(field):
    rows = {name: torch.zeros(1, 1, 1, 8) for name in ("score", "similarity", "final")}
    rows[field] = rows[field][..., 1:]
    with pytest.raises(ValueError, match=field):
        redundancy.combine(**rows, num_entries=torch.ones(1), temperature=0.4, attention_weight=0.2)
