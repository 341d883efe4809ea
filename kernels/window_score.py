"""Steps 1 and 2 of the scoring from recorded queries: window attention, then the decayed score of earlier survivors.

Two passes over the keys, read from their pages. The first leaves one log-sum-exp per query, head and chunk of entries;
the second turns logits into probabilities at once and reduces them over heads and queries before anything is written.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipage.kernels.write_kv import cache_rows, load_rows, tile_blocks

# Chunks of entries per request, at most: each leaves a log-sum-exp that every program of the second pass reads.
_MAX_CHUNKS = 16
_SMALLEST_CHUNK = 512
_LARGEST_GROUP = 64
# Entries whose keys are used at once, numbers in them at most, and tiles of them on their way or in use.
_TILE, _TILE_NUMBERS, _NUM_STAGES = 128, 16384, 3
# Arguments whose values must not make new kernels.
_NUMBERS = ["num_buffers", "window", "max_queries", "num_layers", "num_blocks", "max_blocks", "num_chunks"]
_REQUESTS = ["query_buffers", "query_rows", "query_indices", "num_queries", "block_tables", "num_entries"]


@dataclass(frozen=True)
class _Sizes:
    """What a pass knows when it is compiled; `dim` and `group_tile` are powers of two that hold a head and a group."""

    num_kv_heads: int
    group: int
    group_tile: int
    head_dim: int
    dim: int
    block_size: int
    chunk: int
    max_chunks: int
    tile: int
    query_tile: int
    num_warps: int


def window_score(
    queries: Tensor,
    key_cache: Tensor,
    scores: Tensor,
    block_tables: Tensor,
    num_entries: Tensor,
    num_survivors: Tensor,
    query_buffers: Tensor,
    query_rows: Tensor,
    query_indices: Tensor,
    num_queries: Tensor,
    scale: float,
    decay: float,
    reduce: str,
    score: Tensor,
) -> None:
    """Score the resident entries of several requests in several layers by their recorded queries.

    `s[j] = reduce_i max_{h in group} softmax_{j <= index_i}(q_i . k_j * scale)`, and for the first `num_survivors`
    entries `max(s[j], decay * scores[j])`: `window_attention_score` and `global_score` of the reference.

    Args:
        queries: `[L, num_buffers, w, Hq, d]`, recorded queries, of the cache's dtype.
        key_cache: `[L, num_blocks, Hkv, b, d]`.
        scores: `[L, num_blocks, Hkv, b]` float32, the survivors' scores of the last compression.
        block_tables: `[R, max_blocks]` int64.
        num_entries: `[R]` integers, n of each request; nothing is done where it is 0.
        num_survivors: `[R]` integers.
        query_buffers: `[R]` integers.
        query_rows: `[R, m_max]` integers, rows in the buffer, padded.
        query_indices: `[R, m_max]` integers, the resident index of each query's own entry, the last one it sees.
        num_queries: `[R]` integers, m of each request, at least 1.
        scale: factor of `q . k`.
        decay: gamma of step 2; 0 is no global score.
        reduce: `mean` or `max` over the queries.
        score: `[R, L, Hkv, n_max]` float32, written in its first n places.

    Raises:
        ValueError: shapes, dtypes or strides that do not belong together.
    """
    _check(queries, key_cache, scores, block_tables, query_rows, query_indices, score)
    num_layers, num_buffers, window = queries.shape[:3]
    num_requests, max_queries = query_rows.shape
    num_kv_heads, max_entries = score.shape[2:]
    first_pass, second_pass = _sizes(queries, key_cache, max_entries, max_queries)
    num_chunks = triton.cdiv(max_entries, first_pass.chunk)
    shape = (num_requests, num_layers, num_kv_heads, num_chunks, max_queries, first_pass.group)
    partial = torch.empty(shape, dtype=torch.float32, device=score.device)
    recorded = (queries, num_buffers, window, query_buffers, query_rows, query_indices, num_queries, max_queries)
    entries = (key_cache, num_layers, key_cache.shape[1], block_tables, block_tables.shape[1], num_entries)
    inputs = (*recorded, *entries, partial, num_chunks, scale * math.log2(math.e))
    outputs = (scores, num_survivors, decay, score, max_entries)
    options = {"is_mean": reduce == "mean", "num_warps": second_pass.num_warps, "num_stages": _NUM_STAGES}
    query_tiles = triton.cdiv(max_queries, first_pass.query_tile)
    grid = (num_chunks * query_tiles, num_kv_heads, num_requests * num_layers)
    _log_sum_exp_kernel[grid](*inputs, first_pass, num_warps=first_pass.num_warps, num_stages=_NUM_STAGES)
    grid = (num_chunks, num_kv_heads, num_requests * num_layers)
    for first_query in range(0, max_queries, second_pass.query_tile):
        _score_kernel[grid](*inputs, *outputs, first_query, second_pass, **options)


def _check(
    queries: Tensor,
    key_cache: Tensor,
    scores: Tensor,
    block_tables: Tensor,
    query_rows: Tensor,
    query_indices: Tensor,
    score: Tensor,
) -> None:
    num_layers, _, num_kv_heads, _, head_dim = key_cache.shape
    num_heads = queries.shape[3]
    for name, tensor in (("queries", queries), ("key_cache", key_cache), ("scores", scores), ("score", score)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, its strides are {tensor.stride()}")
    if queries.dtype != key_cache.dtype or queries.shape[0] != num_layers or queries.shape[4] != head_dim:
        raise ValueError(
            f"queries must be [{num_layers}, num_buffers, w, Hq, {head_dim}] {key_cache.dtype} as the key cache, not "
            f"{list(queries.shape)} {queries.dtype}"
        )
    if num_heads % num_kv_heads or num_heads > _LARGEST_GROUP * num_kv_heads:
        raise ValueError(
            f"queries must have 1 to {_LARGEST_GROUP} heads for each of {num_kv_heads} KV heads, not {num_heads} heads"
        )
    if scores.shape != key_cache.shape[:4] or scores.dtype != torch.float32:
        raise ValueError(f"scores must be {list(key_cache.shape[:4])} float32, not {list(scores.shape)} {scores.dtype}")
    num_requests = block_tables.shape[0]
    if query_rows.shape[0] != num_requests or query_indices.shape != query_rows.shape:
        raise ValueError(
            f"query_rows and query_indices must be [{num_requests}, m_max] both, not {list(query_rows.shape)} and "
            f"{list(query_indices.shape)}"
        )
    if score.shape[:3] != (num_requests, num_layers, num_kv_heads) or score.dtype != torch.float32:
        raise ValueError(
            f"score must be [{num_requests}, {num_layers}, {num_kv_heads}, n_max] float32, not {list(score.shape)} "
            f"{score.dtype}"
        )


def _sizes(queries: Tensor, key_cache: Tensor, max_entries: int, max_queries: int) -> tuple[_Sizes, _Sizes]:
    """The sizes of the two passes, whose products have a row per query and head.

    16 rows of the first pass belong to one warp, and 64 are the least that the matrix unit takes at once; the second
    has its rows along the other side, where 16 are enough. Products of float32 are computed without the matrix unit,
    from registers, of which larger tiles would need too many.
    """
    _, _, num_kv_heads, block_size, head_dim = key_cache.shape
    group = queries.shape[3] // num_kv_heads
    group_tile, dim = triton.next_power_of_2(group), triton.next_power_of_2(head_dim)
    rows = max(triton.next_power_of_2(max_queries) * group_tile, 16)
    if key_cache.element_size() == 2:
        tile = min(_TILE, _TILE_NUMBERS // dim, _SMALLEST_CHUNK)
        first_rows, second_rows = min(max(rows, 64), 128), min(rows, 128)
        first_warps, second_warps = first_rows // 16, 4 if second_rows <= 64 else 8
    else:
        tile, first_rows, second_rows = 32, max(32, group_tile), max(min(rows, 32), group_tile)
        first_warps, second_warps = 4, 8
    first = _Sizes(
        num_kv_heads=num_kv_heads,
        group=group,
        group_tile=group_tile,
        head_dim=head_dim,
        dim=dim,
        block_size=block_size,
        chunk=max(_SMALLEST_CHUNK, triton.next_power_of_2(triton.cdiv(max_entries, _MAX_CHUNKS))),
        max_chunks=_MAX_CHUNKS,
        tile=tile,
        query_tile=first_rows // group_tile,
        num_warps=first_warps,
    )
    return first, replace(first, query_tile=second_rows // group_tile, num_warps=second_warps)


@triton.jit
def _load_queries(
    queries, num_buffers, window, query_buffers, query_rows, query_indices, num_queries, max_queries, request, layer,
    kv_head, first_query, sizes: tl.constexpr
):  # fmt: skip
    """The heads of a KV head's group for a tile of queries, head by head, and what each may see: -1 is nothing.

    Returns `[group_tile * query_tile, dim]`, the last resident index of each row, the place of each row in an array
    `[m_max, group]` and whether it has one.
    """
    rows = tl.arange(0, sizes.group_tile * sizes.query_tile)
    query = first_query + rows % sizes.query_tile
    member = rows // sizes.query_tile
    valid = (query < tl.load(num_queries + request)) & (member < sizes.group)
    buffer = layer.to(tl.int64) * num_buffers + tl.load(query_buffers + request)
    row = tl.load(query_rows + request * max_queries + query, mask=valid, other=0)
    index = tl.load(query_indices + request * max_queries + query, mask=valid, other=-1).to(tl.int32)
    vectors = ((buffer * window + row) * sizes.num_kv_heads + kv_head) * sizes.group + member
    return load_rows(queries, vectors, valid, sizes), index, query * sizes.group + member, valid


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_REQUESTS)
def _log_sum_exp_kernel(
    queries, num_buffers, window, query_buffers, query_rows, query_indices, num_queries, max_queries, key_cache,
    num_layers, num_blocks, block_tables, max_blocks, num_entries, partial, num_chunks, factor, sizes: tl.constexpr
):  # fmt: skip
    """Base 2 log-sum-exp over one chunk of entries, for a tile of queries and the heads of one KV head."""
    query_tiles = tl.cdiv(max_queries, sizes.query_tile)
    chunk = tl.program_id(0) // query_tiles
    first_query = tl.program_id(0) % query_tiles * sizes.query_tile
    kv_head = tl.program_id(1)
    request, layer = tl.program_id(2) // num_layers, tl.program_id(2) % num_layers
    length = tl.load(num_entries + request).to(tl.int32)
    if chunk * sizes.chunk >= length:
        return
    query, index, place, valid = _load_queries(
        queries, num_buffers, window, query_buffers, query_rows, query_indices, num_queries, max_queries, request,
        layer, kv_head, first_query, sizes
    )  # fmt: skip
    table = block_tables + request.to(tl.int64) * max_blocks
    keys_of_layer = key_cache + layer.to(tl.int64) * num_blocks * (
        sizes.num_kv_heads * sizes.block_size * sizes.head_dim
    )
    # Finite, so that rows which have seen nothing yet subtract a number from minus infinity.
    largest = tl.full((sizes.group_tile * sizes.query_tile,), -1e30, tl.float32)
    total = tl.full((sizes.group_tile * sizes.query_tile,), 0.0, tl.float32)
    blocks = tile_blocks(table, chunk * sizes.chunk, length, sizes)
    for first in range(chunk * sizes.chunk, tl.minimum(chunk * sizes.chunk + sizes.chunk, length), sizes.tile):
        entries = first + tl.arange(0, sizes.tile)
        rows = cache_rows(blocks, first, kv_head, sizes)
        # One tile ahead: keys that the compiler loads early must not wait for the number of their block.
        blocks = tile_blocks(table, first + sizes.tile, length, sizes)
        keys = load_rows(keys_of_layer, rows, entries < length, sizes)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * factor
        logits = tl.where(entries[None, :] <= index[:, None], logits, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(logits, axis=1))
        total = total * tl.exp2(largest - new_largest) + tl.sum(tl.exp2(logits - new_largest[:, None]), axis=1)
        largest = new_largest
    log_sum = tl.where(total > 0, largest + tl.log2(tl.maximum(total, 1.0)), float("-inf"))
    head_chunk = (tl.program_id(2).to(tl.int64) * sizes.num_kv_heads + kv_head) * num_chunks + chunk
    tl.store(partial + head_chunk * max_queries * sizes.group + place, log_sum, mask=valid)


@triton.jit(do_not_specialize=[*_NUMBERS, "first_query", "max_entries"], do_not_specialize_on_alignment=_REQUESTS)
def _score_kernel(
    queries, num_buffers, window, query_buffers, query_rows, query_indices, num_queries, max_queries, key_cache,
    num_layers, num_blocks, block_tables, max_blocks, num_entries, partial, num_chunks, factor, scores, num_survivors,
    decay, score, max_entries, first_query, sizes: tl.constexpr, is_mean: tl.constexpr
):  # fmt: skip
    """Score of one chunk of entries of one KV head, after adding what a tile of queries gives them."""
    # Backwards: what the first pass read last is still in the L2 cache.
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.num_programs(1) - 1 - tl.program_id(1)
    request_layer = tl.num_programs(2) - 1 - tl.program_id(2)
    request, layer = request_layer // num_layers, request_layer % num_layers
    length = tl.load(num_entries + request).to(tl.int32)
    count = tl.load(num_queries + request).to(tl.int32)
    if (chunk * sizes.chunk >= length) | (first_query >= count):
        return
    survivors = tl.load(num_survivors + request).to(tl.int32)
    query, index, place, valid = _load_queries(
        queries, num_buffers, window, query_buffers, query_rows, query_indices, num_queries, max_queries, request,
        layer, kv_head, first_query, sizes
    )  # fmt: skip
    table = block_tables + request.to(tl.int64) * max_blocks
    rows_of_layer = layer.to(tl.int64) * num_blocks * (sizes.num_kv_heads * sizes.block_size)
    head_row = request_layer.to(tl.int64) * sizes.num_kv_heads + kv_head
    chunks = tl.arange(0, sizes.max_chunks)
    parts = tl.load(
        partial + (head_row * num_chunks + chunks)[:, None] * max_queries * sizes.group + place[None, :],
        mask=(chunks * sizes.chunk < length)[:, None] & valid[None, :],
        other=float("-inf"),
    )
    # Every query sees entry 0, so only rows without a query have no largest; they see nothing below.
    largest = tl.where(valid, tl.max(parts, axis=0), 0.0)
    log_sum = largest + tl.log2(tl.maximum(tl.sum(tl.exp2(parts - largest[None, :]), axis=0), 1.0))
    is_last = first_query + sizes.query_tile >= count
    blocks = tile_blocks(table, chunk * sizes.chunk, length, sizes)
    for first in range(chunk * sizes.chunk, tl.minimum(chunk * sizes.chunk + sizes.chunk, length), sizes.tile):
        entries = first + tl.arange(0, sizes.tile)
        inside = entries < length
        rows = rows_of_layer + cache_rows(blocks, first, kv_head, sizes)
        blocks = tile_blocks(table, first + sizes.tile, length, sizes)
        keys = load_rows(key_cache, rows, inside, sizes)
        old = tl.load(scores + rows, mask=is_last & (entries < survivors), other=0.0)
        places = score + head_row * max_entries + entries
        earlier = tl.load(places, mask=inside & (first_query > 0), other=0.0)
        logits = tl.dot(keys, tl.trans(query), input_precision="ieee") * factor
        visible = entries[:, None] <= index[None, :]
        weights = tl.exp2(tl.where(visible, logits - log_sum[None, :], float("-inf")))
        # Head by head along the columns, so that the largest of a group is taken within a thread.
        strongest = tl.max(tl.reshape(weights, (sizes.tile, sizes.group_tile, sizes.query_tile)), axis=1)
        if is_mean:
            total = earlier + tl.sum(strongest, axis=1)
            reduced = total / count
        else:
            total = tl.maximum(earlier, tl.max(strongest, axis=1))
            reduced = total
        final = tl.where(entries < survivors, tl.maximum(reduced, decay * old), reduced)
        tl.store(places, tl.where(is_last, final, total), mask=inside)
