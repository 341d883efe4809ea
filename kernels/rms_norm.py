"""Root-mean-square normalisation of rows.

`norm(x) = x / sqrt(mean(x ** 2) + eps) * weight`, Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
Everything between loading and storing is float32. One program reads its row once and keeps it in registers. The
addition to the residual stream is that of the matrix product before it.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise every row.

    Args:
        inputs: `[T, size]`, rows contiguous.
        weight: `[size]`.
        eps: added to the mean square.

    Returns:
        `[T, size]`, contiguous, dtype of `inputs`.

    Raises:
        ValueError: shapes do not fit, or rows or weight are not contiguous.
    """
    if inputs.dim() != 2 or weight.shape != inputs.shape[1:]:
        raise ValueError(
            f"weight must be [size] for inputs [T, size], not {tuple(weight.shape)} for {tuple(inputs.shape)}"
        )
    for name, tensor in (("inputs", inputs), ("weight", weight)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in the last dimension, not of stride {tensor.stride(-1)}")
    num_rows, size = inputs.shape
    output = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    if num_rows:
        block = triton.next_power_of_2(size)
        stride, num_warps = inputs.stride(0), _num_warps(block)
        _rms_norm_kernel[(num_rows,)](inputs, weight, output, stride, eps, size=size, block=block, num_warps=num_warps)
    return output


def _num_warps(block: int) -> int:
    """Eight elements for each thread, one access of 16 bytes in bf16: the shortest row that latency allows."""
    return min(max(block // 256, 1), 16)


@triton.jit
def _rms_norm_kernel(inputs, weight, output, input_stride, eps, size: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    is_column = columns < size
    values = tl.load(inputs + row * input_stride + columns, mask=is_column, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values) / size + eps)
    scaled = values * factor * tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    tl.store(output + row * size + columns, scaled.to(output.dtype.element_ty), mask=is_column)
