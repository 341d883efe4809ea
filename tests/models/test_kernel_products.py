"""The products of a decoder on the kernels against those in plain PyTorch."""

import pytest
import torch

from zipage.models.operations import kernel_operations, operations_for

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN = operations_for(torch.device("cpu"))
# Of a gated product, the halves are rounded before it.
TOLERANCE = 3 * 2**-10


def numbers(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("num_tokens", [4, 130])
@pytest.mark.parametrize("columns", [128, 160])
def test_products_of_any_shape(num_tokens, columns, dtype):
    operations = kernel_operations(DEVICE)
    inputs = numbers(num_tokens, columns, 0).to(dtype)
    weight, residual = (numbers(64, columns, 1) * columns**-0.5).to(dtype), numbers(num_tokens, 64, 2).to(dtype)
    on_device, weight_on_device = inputs.to(DEVICE), weight.to(DEVICE)
    added, expected_sum = residual.to(DEVICE, copy=True), residual.float()
    operations.add_product(added, on_device, weight_on_device)
    PLAIN.add_product(expected_sum, inputs.float(), weight.float())
    pairs = [
        (operations.product(on_device, weight_on_device), PLAIN.product(inputs.float(), weight.float())),
        (operations.gated_product(on_device, weight_on_device), PLAIN.gated_product(inputs.float(), weight.float())),
        (added, expected_sum),
    ]
    for actual, expected in pairs:
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.float().cpu(), expected, rtol=TOLERANCE, atol=TOLERANCE)
