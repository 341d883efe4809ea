"""SiLU and multiplication against the formula in float64."""

import pytest
import torch

from zipage.kernels.silu_multiply import silu_multiply

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# The relative distance to the next number of the dtype; in float32 the exponential is off by more.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def expected(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, dim=1)
    return gate / (1 + (-gate).exp()) * up


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("size", [1, 100, 1024, 2500])
def test_gate_is_activated_and_multiplied(size, dtype, device):
    values = torch.randn(3, 2 * size, generator=torch.Generator().manual_seed(size)) * 3
    padded = torch.full((3, 2 * size + 16), float("nan"), dtype=dtype, device=device)
    gate_up = padded[:, 8:-8]
    gate_up.copy_(values)
    before = gate_up.clone()
    output = silu_multiply(gate_up)
    assert output.dtype == dtype
    assert output.is_contiguous()
    torch.testing.assert_close(output.double(), expected(gate_up), rtol=TOLERANCES[dtype], atol=1e-7)
    assert torch.equal(gate_up, before)


def test_gates_far_from_zero(device):
    gate = torch.tensor([-1e4, -100.0, -80.0, 80.0, 1e4, 0.0, -0.0], device=device)
    output = silu_multiply(torch.cat([gate, torch.full_like(gate, 2.0)])[None])
    assert output[0, 3:].tolist() == [160.0, 2e4, 0.0, 0.0]
    assert output[0, :3].abs().max() < 1e-30


def test_no_rows(device):
    assert silu_multiply(torch.zeros(0, 64, device=device)).shape == (0, 32)


@pytest.mark.parametrize(
    "gate_up", [torch.zeros(2, 7), torch.zeros(8), torch.zeros(8, 2).t()], ids=["odd", "1D", "stride"]
)
def test_wrong_arguments(gate_up):
    with pytest.raises(ValueError, match="gate_up"):
        silu_multiply(gate_up)
