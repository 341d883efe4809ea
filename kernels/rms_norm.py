"""Root-mean-square normalisation of rows, with the addition to the residual stream that comes before it.

`norm(x) = x / sqrt(mean(x ** 2) + eps) * weight`, Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
Everything between loading and storing is float32. One program reads its row once and keeps it in registers.
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
    return _launch(inputs, None, weight, eps)


def add_rms_norm(residual: Tensor, addend: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add to the residual stream and normalise the sum: `residual += addend`, then `rms_norm(residual)`.

    What is normalised is the sum as stored, rounded to the residual's dtype.

    Args:
        residual: `[T, size]`, rows contiguous, written in place.
        addend: `[T, size]`, rows contiguous, of the residual's dtype.
        weight: `[size]`.
        eps: added to the mean square.

    Returns:
        `[T, size]`, contiguous, dtype of `residual`.

    Raises:
        ValueError: shapes or dtypes do not fit, or rows or weight are not contiguous.
    """
    if addend.shape != residual.shape or addend.dtype != residual.dtype:
        raise ValueError(
            f"addend must be {tuple(residual.shape)} {residual.dtype} like residual, "
            f"not {tuple(addend.shape)} {addend.dtype}"
        )
    return _launch(residual, addend, weight, eps)


def _launch(inputs: Tensor, addend: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    if inputs.dim() != 2 or weight.shape != inputs.shape[1:]:
        raise ValueError(
            f"weight must be [size] for inputs [T, size], not {tuple(weight.shape)} for {tuple(inputs.shape)}"
        )
    for name, tensor in (("inputs", inputs), ("addend", addend), ("weight", weight)):
        if tensor is not None and tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in the last dimension, not of stride {tensor.stride(-1)}")
    num_rows, size = inputs.shape
    output = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    if num_rows:
        block = triton.next_power_of_2(size)
        _rms_norm_kernel[(num_rows,)](
            inputs,
            inputs if addend is None else addend,
            weight,
            output,
            inputs.stride(0),
            0 if addend is None else addend.stride(0),
            eps,
            size=size,
            block=block,
            add=addend is not None,
            num_warps=_num_warps(block),
        )
    return output


def _num_warps(block: int) -> int:
    """Eight elements for each thread, one access of 16 bytes in bf16: the shortest row that latency allows."""
    return min(max(block // 256, 1), 16)


@triton.jit
def _rms_norm_kernel(
    inputs,
    addend,
    weight,
    output,
    input_stride,
    addend_stride,
    eps,
    size: tl.constexpr,
    block: tl.constexpr,
    add: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    is_column = columns < size
    row_inputs = inputs + row * input_stride + columns
    values = tl.load(row_inputs, mask=is_column, other=0.0).to(tl.float32)
    if add:
        values += tl.load(addend + row * addend_stride + columns, mask=is_column, other=0.0).to(tl.float32)
        stored = values.to(inputs.dtype.element_ty)
        tl.store(row_inputs, stored, mask=is_column)
        values = stored.to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values) / size + eps)
    scaled = values * factor * tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    tl.store(output + row * size + columns, scaled.to(output.dtype.element_ty), mask=is_column)
