"""Compaction: each head's survivors move together, in order, with their scores.

Kept indices ascend, so an entry never moves to a later place than its own, and a tile of targets overwrites only
entries that belong to this tile or to an earlier one. Where targets are blocks of the table, one program therefore
takes all tiles of a head in ascending order, and reads each whole before it writes it: by then the next one is on its
way, and the places of the one after that are being looked up. Elsewhere each tile has its own program.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipage.kernels.write_kv import cache_rows, load_rows, tile_blocks

# Bytes of keys, and as many of values, that a program holds in registers, in place for two tiles: three or four
# programs fit a multiprocessor, so that all heads of a model of 36 layers are under way at once.
_TILE_BYTES = 16384


@dataclass(frozen=True)
class _Sizes:
    """What the kernel knows when it is compiled; `dim` is a power of two that holds a head."""

    num_kv_heads: int
    head_dim: int
    dim: int
    block_size: int
    tile: int


def compact(
    key_cache: Tensor,
    value_cache: Tensor,
    scores: Tensor,
    observed: Tensor | None,
    score: Tensor,
    block_tables: Tensor,
    target_blocks: Tensor,
    kept: Tensor,
    keep: Tensor,
    in_place: bool,
) -> None:
    """Move each head's kept entries of several requests in several layers to the first places of the target blocks.

    Like `compact` and `place_entries` of the reference: keys and values come from the table, scores from `score`.

    Args:
        key_cache, value_cache: `[L, num_blocks, Hkv, b, d]`, of one dtype, written in place.
        scores: `[L, num_blocks, Hkv, b]` float32, written at the survivors' new places.
        observed: `[L, num_blocks, Hkv, b]` float32, set to zero in all of every target block; None where attention is
            not accumulated.
        score: `[R, L, Hkv, n_max]` float32, what survivors carry to the next compression.
        block_tables: `[R, max_blocks]` int64.
        target_blocks: `[R, max_target_blocks]` int64, at least `ceil(keep / b)` of each request, none twice. Target
            `i` may be block `i` or an earlier one of the request's own table, and of no other's.
        kept: `[R, L, Hkv, keep_max]` int32, ascending entry indices.
        keep: `[R]` integers; nothing is done where it is 0.
        in_place: whether a target may be a block of its request's table. False is faster for few requests.

    Raises:
        ValueError: shapes, dtypes or strides that do not belong together.
    """
    _check(key_cache, value_cache, scores, observed, score, block_tables, target_blocks, kept)
    num_layers, num_blocks, num_kv_heads, block_size, head_dim = key_cache.shape
    dim = triton.next_power_of_2(head_dim)
    tile = _TILE_BYTES // (dim * key_cache.element_size()) // (2 if in_place else 1)
    sizes = _Sizes(num_kv_heads, head_dim, dim, block_size, tile)
    num_requests, max_kept = len(kept), kept.shape[3]
    # Whole blocks, as the places behind the last survivor are zeroed too.
    max_places = triton.cdiv(max_kept, block_size) * block_size
    grid = (1 if in_place else triton.cdiv(max_places, sizes.tile), num_kv_heads, num_requests * num_layers)
    caches = (key_cache, value_cache, scores, observed, num_layers, num_blocks)
    tables = (block_tables, block_tables.shape[1], target_blocks, target_blocks.shape[1])
    survivors = (kept, max_kept, keep, score, score.shape[3])
    _compact_kernel[grid](*caches, *tables, *survivors, sizes, in_place, num_warps=4 if in_place else 8)


def _check(
    key_cache: Tensor,
    value_cache: Tensor,
    scores: Tensor,
    observed: Tensor | None,
    score: Tensor,
    block_tables: Tensor,
    target_blocks: Tensor,
    kept: Tensor,
) -> None:
    num_layers, num_blocks, num_kv_heads, block_size, _ = key_cache.shape
    entries = (num_layers, num_blocks, num_kv_heads, block_size)
    rows = (len(block_tables), num_layers, num_kv_heads)
    for name, tensor, shape, dtype in (
        ("key_cache", key_cache, key_cache.shape, key_cache.dtype),
        ("value_cache", value_cache, key_cache.shape, key_cache.dtype),
        ("scores", scores, entries, torch.float32),
        ("observed", scores if observed is None else observed, entries, torch.float32),
        ("score", score, (*rows, score.shape[-1]), torch.float32),
        ("target_blocks", target_blocks, (len(block_tables), target_blocks.shape[-1]), target_blocks.dtype),
        ("kept", kept, (*rows, kept.shape[-1]), torch.int32),
    ):
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be {list(shape)} {dtype}, contiguous, not {list(tensor.shape)} {tensor.dtype}"
            )


@triton.jit(
    do_not_specialize=["num_layers", "num_blocks", "max_blocks", "max_targets", "max_kept", "max_entries"],
    do_not_specialize_on_alignment=["block_tables", "target_blocks", "keep"],
)
def _compact_kernel(
    key_cache, value_cache, scores, observed, num_layers, num_blocks, block_tables, max_blocks, target_blocks,
    max_targets, kept, max_kept, keep, score, max_entries, sizes: tl.constexpr, in_place: tl.constexpr
):  # fmt: skip
    kv_head = tl.program_id(1)
    request, layer = tl.program_id(2) // num_layers, tl.program_id(2) % num_layers
    count = tl.load(keep + request).to(tl.int32)
    num_places = tl.cdiv(count, sizes.block_size) * sizes.block_size
    begin, end = 0, num_places
    if not in_place:
        begin = tl.program_id(0) * sizes.tile
        end = tl.minimum(begin + sizes.tile, num_places)
    head_row = tl.program_id(2).to(tl.int64) * sizes.num_kv_heads + kv_head
    table = block_tables + request.to(tl.int64) * max_blocks
    targets = target_blocks + request.to(tl.int64) * max_targets
    rows_of_layer = layer.to(tl.int64) * num_blocks * (sizes.num_kv_heads * sizes.block_size)
    dims = tl.arange(0, sizes.dim)
    last = tl.minimum(count, end)
    kept_row = kept + head_row * max_kept
    entries, source, target = _route(kept_row, table, targets, begin, last, end, kv_head, sizes)
    keys, values = _read(key_cache, value_cache, rows_of_layer, begin, source, target, last, sizes)
    if in_place:
        next_entries, next_source, next_target = _route(
            kept_row, table, targets, begin + sizes.tile, last, end, kv_head, sizes
        )
    for first in range(begin, end, sizes.tile):
        places = first + tl.arange(0, sizes.tile)
        survives = places < count
        new_scores = tl.load(score + head_row * max_entries + entries, mask=survives, other=0.0)
        moves = survives & (source != target)
        if in_place:
            # No warp may write before all have read.
            tl.debug_barrier()
            next_keys, next_values = _read(
                key_cache, value_cache, rows_of_layer, first + sizes.tile, next_source, next_target, last, sizes
            )
        row = rows_of_layer + target
        pointers = row[:, None] * sizes.head_dim + dims[None, :]
        mask = moves[:, None] & (dims < sizes.head_dim)[None, :]
        tl.store(key_cache + pointers, keys, mask=mask)
        tl.store(value_cache + pointers, values, mask=mask)
        tl.store(scores + row, new_scores, mask=survives)
        if observed is not None:
            tl.store(observed + row, tl.full([sizes.tile], 0.0, tl.float32), mask=places < num_places)
        if in_place:
            entries, source, target, keys, values = next_entries, next_source, next_target, next_keys, next_values
            next_entries, next_source, next_target = _route(
                kept_row, table, targets, first + 2 * sizes.tile, last, end, kv_head, sizes
            )


@triton.jit
def _route(kept, table, targets, first, last, end, kv_head, sizes: tl.constexpr):
    """For the places from `first` on, `[tile]`: entries that go there, their vectors now and then."""
    places = first + tl.arange(0, sizes.tile)
    entries = tl.load(kept + places, mask=places < last, other=0)
    block = tl.load(table + entries // sizes.block_size, mask=places < last, other=0).to(tl.int64)
    source = (block * sizes.num_kv_heads + kv_head) * sizes.block_size + entries % sizes.block_size
    return entries, source, cache_rows(tile_blocks(targets, first, end, sizes), first, kv_head, sizes)


@triton.jit
def _read(key_cache, value_cache, rows_of_layer, first, source, target, last, sizes: tl.constexpr):
    """Keys and values `[tile, dim]` for the places from `first` on."""
    # Entries before the first one evicted stay where they are.
    moves = (first + tl.arange(0, sizes.tile) < last) & (source != target)
    keys = load_rows(key_cache, rows_of_layer + source, moves, sizes)
    return keys, load_rows(value_cache, rows_of_layer + source, moves, sizes)
