"""Paged prefill attention: causal attention of chunks of several requests over the entries in their pages.

One program has a tile of consecutive queries of a chunk with all query heads of a KV head, and goes through the entries
they see: first the tiles that every query sees whole, then those on the diagonal.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipage.kernels.decode_attention import LOG2_E
from zipage.kernels.write_kv import (
    cache_rows,
    check_attention_inputs,
    check_integers,
    check_paged_cache,
    load_rows,
    tile_blocks,
)


@dataclass(frozen=True)
class _Sizes:
    """What the kernels know when they are compiled; `dim` and `chunks` are powers of two that hold the others."""

    num_kv_heads: int
    group: int
    head_dim: int
    block_size: int
    tile: int
    rows: int
    dim: int
    chunks: int


def paged_prefill_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cu_seqlens: Tensor,
    block_tables: Tensor,
    resident_lengths: Tensor,
    scale: float,
    observed: Tensor | None = None,
    observe_last: Tensor | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """Causal attention of chunks, whose queries own the last resident entries: `reference.paged_prefill_attention`.

    Args:
        query: `[T, Hq, d]` of the caches' dtype, the heads of a token contiguous.
        key_cache, value_cache: `[num_blocks, Hkv, b, d]`, bfloat16, float16 or float32, the chunks' entries written.
        cu_seqlens: `[C + 1]` int32 or int64: chunk `c` has the queries from `cu_seqlens[c]` to `cu_seqlens[c + 1]`.
        block_tables: `[C, max_blocks]` int32 or int64; places past a request's own blocks are not read.
        resident_lengths: `[C]` int32 or int64, the chunk's entries included.
        scale: factor of `q . k`, more than 0.
        observed: `[num_blocks, Hkv, b]` float32; gains, for every entry, the largest probability among the query heads
            of its KV head, summed over the observed queries. The output is the same bits with and without it.
        observe_last: `[C]` int32 or int64, how many of a chunk's last queries are observed; goes with `observed`.
        output: `[T, Hq, d]`, the heads of a token contiguous; allocated if None.

    Returns:
        `[T, Hq, d]`, `output` if given. Queries past the last chunk are not written.

    Raises:
        ValueError: shapes, strides, dtypes or a scale other than these.
    """
    check_paged_cache(key_cache, value_cache, observed)
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device) if output is None else output
    num_chunks, num_kv_heads = len(block_tables), key_cache.shape[1]
    check_attention_inputs(query, key_cache, block_tables, resident_lengths, output)
    check_integers("cu_seqlens", cu_seqlens, num_chunks + 1)
    if not scale > 0:
        raise ValueError(f"scale must be more than 0, not {scale}")
    if (observed is None) != (observe_last is None):
        raise ValueError("observed and observe_last must be given together")
    if not len(query) or not num_chunks:
        return output
    sizes = _sizes(query, key_cache, num_chunks)
    log_sum_exp = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    chunks = (query, query.stride(0), cu_seqlens, block_tables, block_tables.stride(0), resident_lengths)
    # Every chunk may end in a tile of its own.
    grid = (len(query) // (sizes.rows // sizes.group) + num_chunks, num_kv_heads)
    _attend_kernel[grid](
        *chunks, num_chunks, scale * LOG2_E, key_cache, log_sum_exp, value_cache, output, output.stride(0),
        sizes=sizes, num_warps=8, num_stages=3,
    )  # fmt: skip
    if observed is not None and observe_last is not None:
        check_integers("observe_last", observe_last, num_chunks)
        num_tiles = triton.cdiv(block_tables.shape[1] * sizes.block_size, sizes.tile)
        _observe_kernel[(num_tiles, num_kv_heads, num_chunks)](
            *chunks, observe_last, scale * LOG2_E, key_cache, log_sum_exp, observed, sizes=sizes, num_warps=4
        )
    return output


def _sizes(query: Tensor, key_cache: Tensor, num_chunks: int) -> _Sizes:
    """The largest tiles whose accumulators stay in registers."""
    num_kv_heads, block_size, head_dim = key_cache.shape[1:]
    group = query.shape[1] // num_kv_heads
    dim = max(16, triton.next_power_of_2(head_dim))
    if key_cache.dtype == torch.float32:
        rows, tile = (32, 16) if dim <= 128 else (16, 16)
    else:
        rows, tile = (128, 128) if dim <= 128 else (128, 32)
    rows = max(rows, triton.next_power_of_2(group))
    # At least 64: compiling for another number of chunks would stop a running engine for seconds.
    chunks = max(64, triton.next_power_of_2(num_chunks))
    return _Sizes(num_kv_heads, group, head_dim, block_size, tile, rows, dim, chunks)


@triton.jit
def _locate(tile, cu_seqlens, num_chunks, sizes: tl.constexpr):
    """Chunk, and first query in it, of the tile of queries at this place from the end; no chunk is -1."""
    num_queries: tl.constexpr = sizes.rows // sizes.group
    chunks = tl.arange(0, sizes.chunks)
    starts = tl.load(cu_seqlens + chunks, mask=chunks < num_chunks, other=0).to(tl.int32)
    stops = tl.load(cu_seqlens + 1 + chunks, mask=chunks < num_chunks, other=0).to(tl.int32)
    ends = tl.cumsum(tl.cdiv(stops - starts, num_queries), 0)
    # The last tiles see most entries: what begins first should take longest.
    tile = tl.max(ends, 0) - 1 - tile
    passed = ends <= tile
    chunk = tl.where(tile < 0, -1, tl.sum(passed.to(tl.int32), 0))
    return chunk, (tile - tl.max(tl.where(passed, ends, 0), 0)) * num_queries


@triton.jit
def _attend_tiles(
    state, queries, indices, key_cache, value_cache, table, head, first, end, length, factor,
    is_masked: tl.constexpr, sizes: tl.constexpr
):  # fmt: skip
    """Go on with a softmax, its `state` `(largest, total, accumulated)`, through the tiles from `first` to `end`."""
    largest, total, accumulated = state
    blocks = tile_blocks(table, first * sizes.tile, length, sizes)
    for tile in range(first, end):
        rows = cache_rows(blocks, tile * sizes.tile, head, sizes)
        # One tile ahead: the addresses of a load that the compiler starts early must not wait for another load.
        blocks = tile_blocks(table, (tile + 1) * sizes.tile, length, sizes)
        entries = tile * sizes.tile + tl.arange(0, sizes.tile)
        valid = entries < length if is_masked else tl.full([sizes.tile], True, tl.int1)
        keys = load_rows(key_cache, rows, valid, sizes)
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        if is_masked:
            logits = tl.where(entries[None, :] <= indices[:, None], logits, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, 1) * factor)
        weights = tl.exp2(logits * factor - larger[:, None])
        decay = tl.exp2(largest - larger)
        total = total * decay + tl.sum(weights, 1)
        largest = larger
        values = load_rows(value_cache, rows, valid, sizes)
        accumulated = tl.dot(weights.to(values.dtype), values, accumulated * decay[:, None], input_precision="ieee")
    return largest, total, accumulated


@triton.jit(
    do_not_specialize=["table_stride", "num_chunks"],
    do_not_specialize_on_alignment=["cu_seqlens", "block_tables", "resident_lengths"],
)
def _attend_kernel(
    query, query_stride, cu_seqlens, block_tables, table_stride, resident_lengths, num_chunks, factor, key_cache,
    log_sum_exp, value_cache, output, output_stride, sizes: tl.constexpr
):  # fmt: skip
    """A tile of queries and a KV head for each program: output, and log-sum-exp `[T, Hq]` to base 2."""
    num_queries: tl.constexpr = sizes.rows // sizes.group
    chunk, first_query = _locate(tl.program_id(0), cu_seqlens, num_chunks, sizes)
    if chunk < 0:
        return
    head = tl.program_id(1)
    start = tl.load(cu_seqlens + chunk).to(tl.int64)
    num_tokens = (tl.load(cu_seqlens + chunk + 1) - start).to(tl.int32)
    length = tl.load(resident_lengths + chunk).to(tl.int32)
    table = block_tables + chunk.to(tl.int64) * table_stride

    rows, dims = tl.arange(0, sizes.rows), tl.arange(0, sizes.dim)
    offsets, heads = first_query + rows // sizes.group, head * sizes.group + rows % sizes.group
    is_query = (rows < num_queries * sizes.group) & (offsets < num_tokens)
    tokens = start + offsets
    mask = is_query[:, None] & (dims < sizes.head_dim)[None, :]
    vectors = heads[:, None] * sizes.head_dim + dims[None, :]
    queries = tl.load(query + tokens[:, None] * query_stride + vectors, mask=mask, other=0.0)

    first_index = length - num_tokens + first_query
    num_whole = (first_index + 1) // sizes.tile
    num_tiles = tl.cdiv(tl.minimum(first_index + num_queries, length), sizes.tile)
    indices = length - num_tokens + offsets
    state = (
        tl.full([sizes.rows], -1e30, tl.float32),
        tl.full([sizes.rows], 0.0, tl.float32),
        tl.full([sizes.rows, sizes.dim], 0.0, tl.float32),
    )
    state = _attend_tiles(
        state, queries, indices, key_cache, value_cache, table, head, 0, num_whole, length, factor, False, sizes
    )
    largest, total, accumulated = _attend_tiles(
        state, queries, indices, key_cache, value_cache, table, head, num_whole, num_tiles, length, factor, True, sizes
    )
    accumulated /= total[:, None]
    tl.store(output + tokens[:, None] * output_stride + vectors, accumulated.to(output.dtype.element_ty), mask=mask)
    exponents = log_sum_exp + tokens * (sizes.num_kv_heads * sizes.group) + heads
    tl.store(exponents, largest + tl.log2(total), mask=is_query)


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["cu_seqlens", "block_tables", "resident_lengths", "observe_last"],
)
def _observe_kernel(
    query, query_stride, cu_seqlens, block_tables, table_stride, resident_lengths, observe_last, factor, key_cache,
    log_sum_exp, observed, sizes: tl.constexpr
):  # fmt: skip
    """A tile of a chunk's entries and a KV head for each program: adds what its observed queries give them."""
    num_queries: tl.constexpr = 64 if sizes.rows == 128 else 16
    chunk, head, first_entry = tl.program_id(2), tl.program_id(1), tl.program_id(0) * sizes.tile
    length = tl.load(resident_lengths + chunk).to(tl.int32)
    start = tl.load(cu_seqlens + chunk).to(tl.int64)
    num_tokens = (tl.load(cu_seqlens + chunk + 1) - start).to(tl.int32)
    first_index = length - num_tokens
    # Queries whose index is before the tile see none of it.
    first_query = tl.maximum(num_tokens - tl.load(observe_last + chunk).to(tl.int32), first_entry - first_index)
    first_query = tl.maximum(first_query, 0)
    if (first_entry >= length) | (first_query >= num_tokens):
        return
    table = block_tables + chunk.to(tl.int64) * table_stride
    entries, dims = first_entry + tl.arange(0, sizes.tile), tl.arange(0, sizes.dim)
    rows = cache_rows(tile_blocks(table, first_entry, length, sizes), first_entry, head, sizes)
    keys = tl.trans(load_rows(key_cache, rows, entries < length, sizes))
    amount = tl.full([sizes.tile], 0.0, tl.float32)
    for first in range(first_query, num_tokens, num_queries):
        offsets = first + tl.arange(0, num_queries)
        is_query = offsets < num_tokens
        tokens = (start + offsets)[:, None]
        is_seen = is_query[:, None] & (entries[None, :] <= (first_index + offsets)[:, None])
        mask = is_query[:, None] & (dims < sizes.head_dim)[None, :]
        largest = tl.full([num_queries, sizes.tile], 0.0, tl.float32)
        for query_head in range(head * sizes.group, (head + 1) * sizes.group):
            vectors = query + tokens * query_stride + query_head * sizes.head_dim + dims[None, :]
            logits = tl.dot(tl.load(vectors, mask=mask, other=0.0), keys, input_precision="ieee") * factor
            exponents = log_sum_exp + tokens * (sizes.num_kv_heads * sizes.group) + query_head
            exponents = tl.load(exponents, mask=is_query[:, None], other=0.0)
            largest = tl.maximum(largest, tl.exp2(tl.where(is_seen, logits - exponents, float("-inf"))))
        amount += tl.sum(largest, 0)
    # Chunks may share a block.
    tl.atomic_add(observed + rows, amount, mask=entries < length, sem="relaxed")
