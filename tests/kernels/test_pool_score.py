"""kernels/pool_score.py against the reference."""

import pytest
import torch

from zipage.kernels import pool_score, reference

NAN = float("nan")


def run(score: torch.Tensor, lengths: list[int], is_pooled: list[bool]) -> torch.Tensor:
    """Pool with NaN in everything that no request has."""
    for request, length in enumerate(lengths):
        score[request, :, :, length:] = NAN
    pooled = torch.full_like(score, NAN)
    device = score.device
    pool_score.pool_score(score, torch.tensor(lengths, device=device), torch.tensor(is_pooled, device=device), pooled)
    return pooled


@pytest.mark.parametrize("lengths", [[1, 2, 3], [5, 0, 64], [150, 63, 65]])
@pytest.mark.parametrize("is_pooled", [[True, True, True], [True, False, True], [False, True, False]])
def test_pool_score_is_the_reference_where_asked_for_and_a_copy_elsewhere(device, lengths, is_pooled, monkeypatch):
    monkeypatch.setattr(pool_score, "_ENTRY_TILE", 64)
    torch.manual_seed(len(lengths))
    score = torch.randn(3, 2, 2, max(lengths) + 2, device=device)
    pooled = run(score, lengths, is_pooled)
    for request, length in enumerate(lengths):
        own = score[request, :, :, :length]
        for layer in range(2 if length else 0):
            expected = reference.pool_score(own[layer]) if is_pooled[request] else own[layer]
            assert torch.equal(pooled[request, layer, :, :length], expected)
        assert pooled[request, :, :, length:].isnan().all()


@pytest.mark.parametrize(
    "pooled", [lambda score: score, lambda score: score[1:], lambda score: score.half(), lambda score: score.mT]
)
def test_wrong_arguments_are_named(device, pooled):
    score = torch.zeros(2, 1, 4, 4, device=device)
    with pytest.raises(ValueError, match="pooled"):
        pool_score.pool_score(score, torch.zeros(2), torch.zeros(2), pooled(score))
