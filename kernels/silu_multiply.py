"""The activation of gated feed-forward layers: `silu(gate) * up`, `silu(x) = x / (1 + exp(-x))`."""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def silu_multiply(gate_up: Tensor) -> Tensor:
    """Multiply the activated first half of every row with the second half, in float32, rounded once.

    Args:
        gate_up: `[T, 2 * I]`, rows contiguous, gate first.

    Returns:
        `[T, I]`, contiguous, dtype of `gate_up`.

    Raises:
        ValueError: not two dimensions, an odd row, or rows that are not contiguous.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [T, 2 * I], not {tuple(gate_up.shape)}")
    if gate_up.stride(1) != 1:
        raise ValueError(f"gate_up must be contiguous in the last dimension, not of stride {gate_up.stride(1)}")
    num_rows, width = gate_up.shape
    size = width // 2
    output = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if output.numel():
        # 1024 elements are 8 for each thread of 4 warps: one access of 16 bytes in bf16, of each half.
        grid = (num_rows, triton.cdiv(size, _BLOCK))
        _silu_multiply_kernel[grid](gate_up, output, gate_up.stride(0), size=size, block=_BLOCK, num_warps=4)
    return output


@triton.jit
def _silu_multiply_kernel(gate_up, output, stride, size: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    is_column = columns < size
    row_gate = gate_up + row * stride + columns
    gate = tl.load(row_gate, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(row_gate + size, mask=is_column, other=0.0).to(tl.float32)
    activated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output + row * size + columns, activated.to(output.dtype.element_ty), mask=is_column)
