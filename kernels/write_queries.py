"""Record the queries of tokens in query slots, for a later compression."""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements that one program copies: two accesses of 16 bytes for each thread in bf16.
_CHUNK = 2048


def write_queries(query_slots: Tensor, query: Tensor, tokens: Tensor, rows: Tensor) -> None:
    """Copy the queries of given tokens: `reference.write_queries` of `query[tokens]`.

    Args:
        query_slots: `[M, w, Hq, d]`, contiguous, written in place.
        query: `[T, Hq, d]`, of the slots' dtype, the heads of a token contiguous.
        tokens: `[Q]` int32 or int64, which tokens.
        rows: `[Q]` int32 or int64, `slot * w + row in the slot`, none twice; -1 writes nothing.

    Raises:
        ValueError: shapes, strides or dtypes other than these.
    """
    if query_slots.dim() != 4 or not query_slots.is_contiguous():
        raise ValueError("query_slots must be contiguous [M, w, Hq, d]")
    num_heads, head_dim = query_slots.shape[2:]
    if query.shape[1:] != (num_heads, head_dim) or query.stride()[1:] != (head_dim, 1):
        raise ValueError(f"query must be [T, {num_heads}, {head_dim}] with the heads of a token contiguous")
    if query.dtype != query_slots.dtype:
        raise ValueError(f"query must be in the slots' dtype {query_slots.dtype}, not {query.dtype}")
    for name, tensor in (("tokens", tokens), ("rows", rows)):
        if tensor.dim() != 1 or tensor.dtype not in (torch.int32, torch.int64) or tensor.stride(0) != 1:
            raise ValueError(f"{name} must be a contiguous vector in int32 or int64")
    if tokens.shape != rows.shape:
        raise ValueError(f"tokens and rows must be of one size, not {len(tokens)} and {len(rows)}")
    size = num_heads * head_dim
    if len(rows):
        grid = (len(rows), triton.cdiv(size, _CHUNK))
        _write_kernel[grid](query_slots, query, query.stride(0), tokens, rows, size=size, chunk=_CHUNK, num_warps=4)


@triton.jit(do_not_specialize_on_alignment=["tokens", "rows"])
def _write_kernel(
    query_slots, query, query_stride, tokens, rows, size: tl.constexpr, chunk: tl.constexpr
):  # fmt: skip
    """A part of one token's heads for each program."""
    row = tl.load(rows + tl.program_id(0)).to(tl.int64)
    if row >= 0:
        token = tl.load(tokens + tl.program_id(0)).to(tl.int64)
        elements = tl.program_id(1) * chunk + tl.arange(0, chunk)
        mask = elements < size
        vector = tl.load(query + token * query_stride + elements, mask=mask)
        tl.store(query_slots + row * size + elements, vector, mask=mask)
