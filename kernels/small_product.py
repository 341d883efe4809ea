"""Matrix products of few rows, whose time is that of reading the weights: `inputs @ weight.t()`.

Every program multiplies all rows with a tile of the weights' rows. Where there are too few tiles to occupy the device,
several programs share one, each with a part of the columns, and the last to finish adds up the parts in their order.
What usually follows is done before anything is written: the addition to the residual stream, or the gated activation.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of inputs at most, and as many as a product of tensor cores has. With more of them the library is faster.
MOST_TOKENS = 64
# Larger weights stay with the library's products.
_MOST_WEIGHT_BYTES = 16 << 20
# What rows and columns of weights are multiples of.
_TILE_ROWS, _TILE_COLUMNS = 32, 128
# Programs to occupy a device: one or a little less for each of its multiprocessors.
_NUM_PROGRAMS = 128
# More than there are tiles of several parts.
_NUM_COUNTERS = 1024
# A program that adds up more parts than these reads them for longer than the others take.
_MOST_PARTS = 4


@dataclass(frozen=True)
class _Sizes:
    """What the kernel knows when it is compiled.

    Attributes:
        outputs: columns of the output; the weights have as many rows, or twice as many where gated.
        columns: of inputs and weights.
        parts: programs for each tile.
        gated, added: what is done with the product.
        tokens: rows of inputs, padded.
        rows, tile: rows of the weights of a program, and columns of a step.
    """

    outputs: int
    columns: int
    parts: int
    gated: bool
    added: bool
    tokens: int = MOST_TOKENS
    rows: int = _TILE_ROWS
    tile: int = _TILE_COLUMNS


def product_counters(device: torch.device) -> Tensor:
    """Int32 zeros, which products need and leave as they were. Calls that may run at the same time need some each."""
    return torch.zeros(_NUM_COUNTERS, dtype=torch.int32, device=device)


def is_small_product(inputs: Tensor, weight: Tensor) -> bool:
    """Whether `small_product`, `add_small_product` and `gated_small_product` take these, and are the fastest."""
    return (
        0 < len(inputs) <= MOST_TOKENS
        and inputs.dtype in (torch.bfloat16, torch.float16)
        and len(weight) % (2 * _TILE_ROWS) == 0
        and weight.shape[1] % _TILE_COLUMNS == 0
        and weight.nbytes <= _MOST_WEIGHT_BYTES
    )


def small_product(inputs: Tensor, weight: Tensor, counters: Tensor) -> Tensor:
    """Multiply: `inputs @ weight.t()`, added up in float32.

    Args:
        inputs: `[T, in]`, rows contiguous, bfloat16 or float16, T at most 64.
        weight: `[out, in]`, contiguous, of the inputs' dtype; out a multiple of 32, in of 128.
        counters: of `product_counters`.

    Returns:
        `[T, out]`, contiguous.

    Raises:
        ValueError: shapes, strides or dtypes other than these.
    """
    output = torch.empty(len(inputs), len(weight), dtype=inputs.dtype, device=inputs.device)
    _launch(inputs, weight, output, counters, gated=False, added=False)
    return output


def add_small_product(residual: Tensor, inputs: Tensor, weight: Tensor, counters: Tensor) -> None:
    """Add the product to `residual` `[T, out]`, contiguous, rounded once. Arguments are those of `small_product`."""
    _launch(inputs, weight, residual, counters, gated=False, added=True)


def gated_small_product(inputs: Tensor, weight: Tensor, counters: Tensor) -> Tensor:
    """`silu(gate) * up` of the product's halves, each rounded first, as `silu_multiply` finds them.

    Args:
        inputs: as in `small_product`.
        weight: `[2 * I, in]`, contiguous, rows of gate first; I a multiple of 32, in of 128.
        counters: of `product_counters`.

    Returns:
        `[T, I]`, contiguous.

    Raises:
        ValueError: shapes, strides or dtypes other than these.
    """
    output = torch.empty(len(inputs), len(weight) // 2, dtype=inputs.dtype, device=inputs.device)
    _launch(inputs, weight, output, counters, gated=True, added=False)
    return output


def _launch(inputs: Tensor, weight: Tensor, output: Tensor, counters: Tensor, gated: bool, added: bool) -> None:
    num_outputs = len(weight) // 2 if gated else len(weight)
    _check(inputs, weight, output, num_outputs)
    num_tokens, columns = inputs.shape
    if not num_tokens:
        return
    num_parts = 1 if gated else _num_parts(num_outputs, columns)
    sizes = _Sizes(num_outputs, columns, num_parts, gated, added)
    parts = None
    if num_parts > 1:
        parts = torch.empty(num_parts, num_tokens, num_outputs, dtype=torch.float32, device=inputs.device)
    _product_kernel[(num_outputs // _TILE_ROWS, num_parts)](
        inputs, inputs.stride(0), weight, output, parts, counters, num_tokens, sizes, num_warps=4, num_stages=4
    )  # fmt: skip


def _num_parts(num_outputs: int, columns: int) -> int:
    """Programs that share a tile: where that is possible, until they occupy the device."""
    return max(1, min(_NUM_PROGRAMS * _TILE_ROWS // num_outputs, _MOST_PARTS, columns // _TILE_COLUMNS))


def _check(inputs: Tensor, weight: Tensor, output: Tensor, num_outputs: int) -> None:
    if inputs.dim() != 2 or inputs.stride(1) != 1 or len(inputs) > MOST_TOKENS:
        raise ValueError(f"inputs must be [at most {MOST_TOKENS}, in] with contiguous rows, not {tuple(inputs.shape)}")
    if inputs.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"inputs must be bfloat16 or float16, not {inputs.dtype}")
    if weight.dim() != 2 or weight.shape[1] != inputs.shape[1] or not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous [out, {inputs.shape[1]}], not {tuple(weight.shape)}")
    if num_outputs % _TILE_ROWS or weight.shape[1] % _TILE_COLUMNS:
        raise ValueError(
            f"weight must have multiples of {_TILE_ROWS} outputs and {_TILE_COLUMNS} columns, not {tuple(weight.shape)}"
        )
    if weight.dtype != inputs.dtype:
        raise ValueError(f"weight must be in the inputs' dtype {inputs.dtype}, not {weight.dtype}")
    if output.shape != (len(inputs), num_outputs) or output.dtype != inputs.dtype or not output.is_contiguous():
        raise ValueError(f"residual must be contiguous [{len(inputs)}, {num_outputs}] in {inputs.dtype}")


@triton.jit
def _multiply_part(inputs, input_stride, weight, num_tokens, sizes: tl.constexpr):
    """Products `[tokens, rows]` float32 of this program's columns; those of up are zeros where nothing is gated."""
    tokens, rows, steps = tl.arange(0, sizes.tokens), tl.arange(0, sizes.rows), tl.arange(0, sizes.tile)
    num_steps: tl.constexpr = sizes.columns // sizes.tile
    first = tl.program_id(1) * num_steps // sizes.parts
    last = (tl.program_id(1) + 1) * num_steps // sizes.parts
    weight_rows = (tl.program_id(0) * sizes.rows + rows).to(tl.int64) * sizes.columns
    inputs += tokens[:, None] * input_stride + steps[None, :]
    weight += weight_rows[:, None] + steps[None, :]
    up_weight = weight + sizes.outputs * sizes.columns
    product = tl.full([sizes.tokens, sizes.rows], 0.0, tl.float32)
    up = tl.full([sizes.tokens, sizes.rows], 0.0, tl.float32)
    for step in range(first, last):
        column = step * sizes.tile
        values = tl.load(inputs + column, mask=(tokens < num_tokens)[:, None], other=0.0)
        product = tl.dot(values, tl.trans(tl.load(weight + column)), product)
        if sizes.gated:
            up = tl.dot(values, tl.trans(tl.load(up_weight + column)), up)
    return product, up


@triton.jit(do_not_specialize=["num_tokens"])
def _product_kernel(
    inputs, input_stride, weight, output, parts, counters, num_tokens, sizes: tl.constexpr
):  # fmt: skip
    """A tile of `rows` outputs for all tokens and, of several for the same tile, a part of the columns."""
    product, up = _multiply_part(inputs, input_stride, weight, num_tokens, sizes)
    tokens = tl.arange(0, sizes.tokens)
    columns = tl.program_id(0) * sizes.rows + tl.arange(0, sizes.rows)
    places = tokens[:, None] * sizes.outputs + columns[None, :]
    mask = (tokens < num_tokens)[:, None]
    is_complete = sizes.parts == 1
    if sizes.parts > 1:
        part_size = num_tokens * sizes.outputs
        tl.store(parts + tl.program_id(1) * part_size + places, product, mask=mask)
        # A part is written before it is counted, and who counts the last one sees them all.
        tl.debug_barrier()
        counter = counters + tl.program_id(0)
        is_complete = tl.atomic_add(counter, 1, sem="acq_rel") == sizes.parts - 1
        if is_complete:
            tl.store(counter, 0)
            product = tl.full([sizes.tokens, sizes.rows], 0.0, tl.float32)
            # Two at a time are on their way; more take registers that limit the programs of a multiprocessor.
            for part in tl.range(0, sizes.parts, loop_unroll_factor=2):
                # From beyond the first-level cache, which does not see what other multiprocessors write.
                product += tl.load(parts + part * part_size + places, mask=mask, other=0.0, cache_modifier=".cg")
    if is_complete:
        if sizes.gated:
            gate = product.to(output.dtype.element_ty).to(tl.float32)
            product = gate / (1.0 + tl.exp(-gate)) * up.to(output.dtype.element_ty).to(tl.float32)
        if sizes.added:
            product += tl.load(output + places, mask=mask, other=0.0).to(tl.float32)
        tl.store(output + places, product.to(output.dtype.element_ty), mask=mask)
