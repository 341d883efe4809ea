"""Products of few rows against the formulas in float64."""

import pytest
import torch
import torch.nn.functional as F

from zipage.kernels.small_product import (
    add_small_product,
    gated_small_product,
    is_small_product,
    product_counters,
    small_product,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Triton's interpreter multiplies the bit patterns of bfloat16.
DTYPES = [torch.float16, torch.bfloat16] if torch.cuda.is_available() else [torch.float16]
# The relative distance to the next number of the dtype, of sums whose terms are of the size of the result.
TOLERANCES = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
# One program for each tile, four of two steps, two of three steps, three for a single tile.
SHAPES = [(4096, 128), (64, 1024), (2048, 384), (32, 384)]


@pytest.fixture
def weights(random_rows):
    """Makes weights `[outputs, inputs]` whose products are of the size of their inputs."""

    def make(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        return (random_rows(rows, columns, torch.float32, seed=1) * columns**-0.5).to(dtype).contiguous()

    return make


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_outputs", "columns"), SHAPES)
@pytest.mark.parametrize("num_tokens", [1, 17, 64])
def test_product(num_tokens, num_outputs, columns, dtype, device, random_rows, weights):
    inputs, weight = random_rows(num_tokens, columns, dtype), weights(num_outputs, columns, dtype)
    counters = product_counters(device)
    output = small_product(inputs, weight, counters)
    assert output.dtype == dtype
    assert_close(output, F.linear(inputs.double(), weight.double()))
    assert not counters.any()
    assert torch.equal(output, small_product(inputs, weight, counters))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_outputs", "columns"), SHAPES[1:])
@pytest.mark.parametrize("num_tokens", [5, 64])
def test_product_is_added_to_the_residual_stream(num_tokens, num_outputs, columns, dtype, device, random_rows, weights):
    inputs, weight = random_rows(num_tokens, columns, dtype), weights(num_outputs, columns, dtype)
    residual = random_rows(num_tokens, num_outputs, dtype, seed=2).contiguous()
    expected = residual.double() + F.linear(inputs.double(), weight.double())
    counters = product_counters(device)
    add_small_product(residual, inputs, weight, counters)
    assert_close(residual, expected)
    assert not counters.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [3, 64])
@pytest.mark.parametrize(("size", "columns"), [(64, 256), (32, 128)])
def test_gated_product(num_tokens, size, columns, dtype, device, random_rows, weights):
    inputs, weight = random_rows(num_tokens, columns, dtype), weights(2 * size, columns, dtype)
    gate, up = F.linear(inputs.double(), weight.double()).chunk(2, dim=1)
    output = gated_small_product(inputs, weight, product_counters(device))
    # Two roundings before the last.
    tolerance = 3 * TOLERANCES[dtype]
    torch.testing.assert_close(output.double(), F.silu(gate) * up, rtol=tolerance, atol=tolerance)


def test_other_rows_change_nothing(device, random_rows, weights):
    inputs, weight = random_rows(40, 512, torch.float16), weights(64, 512, torch.float16)
    counters = product_counters(device)
    assert torch.equal(small_product(inputs, weight, counters)[:7], small_product(inputs[:7], weight, counters))


def test_no_rows(device):
    inputs, weight = torch.zeros(0, 128, dtype=torch.float16), torch.zeros(64, 128, dtype=torch.float16)
    assert small_product(inputs.to(device), weight.to(device), product_counters(device)).shape == (0, 64)


@pytest.mark.parametrize(
    ("num_tokens", "weight", "dtype", "is_small"),
    [
        (64, (4096, 1024), torch.bfloat16, True),
        (1, (1024, 3072), torch.float16, True),
        (0, (1024, 3072), torch.float16, False),
        (65, (4096, 1024), torch.bfloat16, False),
        (64, (4096, 1024), torch.float32, False),
        (64, (4128, 1024), torch.bfloat16, False),
        (64, (4096, 1056), torch.bfloat16, False),
        (64, (24576, 4096), torch.bfloat16, False),
    ],
)
def test_which_products_are_small(num_tokens, weight, dtype, is_small):
    inputs = torch.empty(num_tokens, weight[1], dtype=dtype, device="meta")
    assert is_small_product(inputs, torch.empty(weight, dtype=dtype, device="meta")) == is_small


@pytest.mark.parametrize(
    ("name", "inputs", "weight", "residual"),
    [
        ("inputs", torch.zeros(65, 128).half(), torch.zeros(64, 128).half(), torch.zeros(65, 64).half()),
        ("inputs", torch.zeros(128, 2).half().t(), torch.zeros(64, 128).half(), torch.zeros(2, 64).half()),
        ("inputs", torch.zeros(2, 128), torch.zeros(64, 128), torch.zeros(2, 64)),
        ("weight", torch.zeros(2, 128).half(), torch.zeros(64, 256).half(), torch.zeros(2, 64).half()),
        ("weight", torch.zeros(2, 128).half(), torch.zeros(128, 64).half().t(), torch.zeros(2, 64).half()),
        ("weight", torch.zeros(2, 128).half(), torch.zeros(48, 128).half(), torch.zeros(2, 48).half()),
        ("weight", torch.zeros(2, 64).half(), torch.zeros(64, 64).half(), torch.zeros(2, 64).half()),
        ("weight", torch.zeros(2, 128).half(), torch.zeros(64, 128).bfloat16(), torch.zeros(2, 64).half()),
        ("residual", torch.zeros(2, 128).half(), torch.zeros(64, 128).half(), torch.zeros(2, 32).half()),
        ("residual", torch.zeros(2, 128).half(), torch.zeros(64, 128).half(), torch.zeros(2, 64)),
        ("residual", torch.zeros(2, 128).half(), torch.zeros(64, 128).half(), torch.zeros(64, 2).half().t()),
    ],
)
def test_wrong_arguments_are_named(name, inputs, weight, residual):
    with pytest.raises(ValueError, match=name):
        add_small_product(residual, inputs, weight, product_counters(torch.device("cpu")))
