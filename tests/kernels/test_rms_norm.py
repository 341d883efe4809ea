"""RMS norm against the formula in float64."""

import pytest
import torch

from zipage.kernels.rms_norm import rms_norm

pytestmark = pytest.mark.usefixtures("poisoned_memory")

EPS = 1e-5
# The relative distance to the next number of the dtype; in float32 a sum is off by more than its last bit.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SIZES = [1, 64, 1000, 1024, 2560]


def norm(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    values, weight = values.double(), weight.double()
    return values / (values.square().mean(1, keepdim=True) + EPS).sqrt() * weight


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=TOLERANCES[actual.dtype], atol=1e-7)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rows_are_normalised(size, dtype, random_rows):
    inputs, weight = random_rows(3, size, dtype), random_rows(1, size, dtype, seed=1)[0]
    before = inputs.clone()
    output = rms_norm(inputs, weight, EPS)
    assert output.dtype == dtype
    assert output.is_contiguous()
    assert_close(output, norm(inputs, weight))
    assert torch.equal(inputs, before)


def test_rows_of_large_and_small_numbers(device, random_rows):
    scales = torch.tensor([1e-6, 1e4, 0.0, 1.0], device=device)[:, None]
    inputs, weight = random_rows(4, 96, torch.float32) * scales, random_rows(1, 96, torch.float32, seed=1)[0]
    output = rms_norm(inputs, weight, EPS)
    assert_close(output, norm(inputs, weight))
    assert not output[2].any()


def test_no_rows(device):
    inputs = torch.zeros(0, 64, device=device)
    weight = torch.ones(64, device=device)
    assert rms_norm(inputs, weight, EPS).shape == (0, 64)


@pytest.mark.parametrize(
    ("inputs", "weight", "name"),
    [
        (torch.zeros(2, 8), torch.zeros(4), "weight"),
        (torch.zeros(8), torch.zeros(8), "inputs"),
        (torch.zeros(8, 2).t(), torch.zeros(8), "inputs"),
        (torch.zeros(2, 8), torch.zeros(16)[::2], "weight"),
    ],
)
def test_wrong_arguments(inputs, weight, name):
    with pytest.raises(ValueError, match=name):
        rms_norm(inputs, weight, EPS)
