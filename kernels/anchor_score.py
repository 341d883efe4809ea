"""Step 6 of the scoring, anchors: which keys say what no later key says again, and a place for them among survivors.

The content of a key are the dimensions that RoPE turns slowly: what it says of a token, and little of where that is. An
anchor's content is long, and unlike that of all later keys. `reference.anchor_score` has the formula.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipage.kernels.checks import check_scores
from zipage.kernels.redundancy_pairs import KeySizes, start_of_layer
from zipage.kernels.reference import ANCHOR_STEPS
from zipage.kernels.write_kv import cache_rows, tile_blocks

_SCORE_TILE = 2048
_MARK_TILE = 1024
# Triton multiplies matrices that have at least so many columns.
_SMALLEST_DIM = 16


def anchor_score(
    key_cache: Tensor,
    block_tables: Tensor,
    num_entries: Tensor,
    first: Tensor,
    last: Tensor,
    similarity: Tensor,
    anchor: Tensor,
) -> None:
    """Score the entries `first` to `last` of every request in several layers as anchors.

    Args:
        key_cache: `[L, num_blocks, Hkv, b, d]`.
        block_tables: `[R, max_blocks]` int64.
        num_entries: `[R]` integers, n of each request.
        first, last: `[R]` integers, the entries that are scored, and that the scores are standardised over.
        similarity: `[R, L, Hkv, n_max]` float32, for use on the way.
        anchor: `[R, L, Hkv, n_max]` float32, other memory, written from `first` to `last`.

    Raises:
        ValueError: shapes, dtypes or strides that do not belong together.
    """
    num_layers, num_blocks, num_kv_heads, block_size, head_dim = key_cache.shape
    if not key_cache.is_contiguous():
        raise ValueError(f"key_cache must be contiguous, its strides are {key_cache.stride()}")
    shape = (len(block_tables), num_layers, num_kv_heads, anchor.shape[-1])
    check_scores(shape, similarity=similarity, anchor=anchor)
    slow = head_dim // 2 - head_dim // 4
    dim = max(triton.next_power_of_2(slow), _SMALLEST_DIM)
    # Products of float32 are computed without the matrix unit, from registers: small tiles for many threads.
    tile = 128 if key_cache.element_size() == 2 else 32
    sizes = KeySizes(num_kv_heads, head_dim, dim, block_size, tile)
    max_entries = anchor.shape[-1]
    grid = (triton.cdiv(max_entries, tile), num_kv_heads, len(block_tables) * num_layers)
    ends = num_entries, first, last
    _content_kernel[grid](
        key_cache, num_layers, num_blocks, block_tables, block_tables.shape[1], *ends, anchor, similarity, max_entries,
        slow, sizes, num_warps=8,
    )  # fmt: skip
    rows_per_request = num_layers * num_kv_heads
    score_tile = min(triton.next_power_of_2(max_entries), _SCORE_TILE)
    _standardise_kernel[(len(block_tables) * rows_per_request,)](
        anchor, similarity, first, last, rows_per_request, max_entries, ANCHOR_STEPS, score_tile
    )


def prefer(kept: Tensor, count: Tensor, final: Tensor) -> None:
    """Give the first `count` entries of `kept` the highest score there is.

    Args:
        kept: `[R, L, Hkv, keep_max]` int32, entry indices.
        count: `[R]` integers.
        final: `[R, L, Hkv, n_max]` float32, written at these entries.

    Raises:
        ValueError: shapes, dtypes or strides that do not belong together.
    """
    check_scores((*kept.shape[:3], final.shape[-1]), final=final)
    if kept.dtype != torch.int32 or not kept.is_contiguous():
        raise ValueError(f"kept must be int32, contiguous, not {kept.dtype} with strides {kept.stride()}")
    num_requests, num_layers, num_kv_heads, max_kept = kept.shape
    rows_per_request = num_layers * num_kv_heads
    grid = (num_requests * rows_per_request, triton.cdiv(max_kept, _MARK_TILE))
    _prefer_kernel[grid](kept, count, final, rows_per_request, max_kept, final.shape[-1], _MARK_TILE)


@triton.jit
def _load_slow(keys_of_layer, rows, valid, half: tl.constexpr, slow: tl.constexpr, sizes: tl.constexpr):
    """`[tile, dim]`: the slow dimensions of the first or the second half of keys, zeros beyond."""
    dims = tl.arange(0, sizes.dim)
    start: tl.constexpr = half * (sizes.head_dim // 2) + sizes.head_dim // 4
    pointers = keys_of_layer + rows[:, None] * sizes.head_dim + (start + dims)[None, :]
    return tl.load(pointers, mask=valid[:, None] & (dims < slow)[None, :], other=0.0)


@triton.jit
def _lengths(first_half, second_half):
    first_half, second_half = first_half.to(tl.float32), second_half.to(tl.float32)
    return tl.maximum(tl.sqrt(tl.sum(first_half * first_half + second_half * second_half, axis=1)), 1e-12)


@triton.jit
def _cosines(content, content_beside, keys_of_layer, rows, valid, slow: tl.constexpr, sizes: tl.constexpr):
    """`[tile, tile]` cosines of the contents with those of other keys, times the contents' own length."""
    other = _load_slow(keys_of_layer, rows, valid, 0, slow, sizes)
    other_beside = _load_slow(keys_of_layer, rows, valid, 1, slow, sizes)
    product = tl.dot(content, tl.trans(other), input_precision="ieee")
    product = tl.dot(content_beside, tl.trans(other_beside), product, input_precision="ieee")
    return product * (1.0 / _lengths(other, other_beside))[None, :]


@triton.jit(
    do_not_specialize=["num_layers", "num_blocks", "max_blocks", "max_entries"],
    do_not_specialize_on_alignment=["block_tables", "num_entries", "first_entry", "last_entry"],
)
def _content_kernel(
    key_cache, num_layers, num_blocks, block_tables, max_blocks, num_entries, first_entry, last_entry, lengths,
    similarity, max_entries, slow: tl.constexpr, sizes: tl.constexpr
):  # fmt: skip
    """The length of the content of a tile of keys, and its largest cosine with that of a later key."""
    kv_head = tl.program_id(1)
    request, layer = tl.program_id(2) // num_layers, tl.program_id(2) % num_layers
    first = tl.program_id(0) * sizes.tile
    last = tl.load(last_entry + request).to(tl.int32)
    if (first >= last) | (first + sizes.tile <= tl.load(first_entry + request).to(tl.int32)):
        return
    end = tl.load(num_entries + request).to(tl.int32)
    table = block_tables + request.to(tl.int64) * max_blocks
    keys_of_layer = start_of_layer(key_cache, layer, num_blocks, sizes)
    entries = first + tl.arange(0, sizes.tile)
    rows = cache_rows(tile_blocks(table, first, end, sizes), first, kv_head, sizes)
    content = _load_slow(keys_of_layer, rows, entries < end, 0, slow, sizes)
    content_beside = _load_slow(keys_of_layer, rows, entries < end, 1, slow, sizes)
    length = _lengths(content, content_beside)
    # Cosines times the own length, which is divided by at the end; a key without a later one has -1.
    largest = -length
    # Of the tiles behind the entries' own, only the last can be part empty; between them nothing needs a mask.
    last_tile = tl.maximum((end - 1) // sizes.tile * sizes.tile, first)
    blocks = tile_blocks(table, first + sizes.tile, end, sizes)
    for first_other in range(first + sizes.tile, last_tile, sizes.tile):
        rows = cache_rows(blocks, first_other, kv_head, sizes)
        # One tile ahead: keys that the compiler loads early must not wait for the number of their block.
        blocks = tile_blocks(table, first_other + sizes.tile, end, sizes)
        others = first_other + tl.arange(0, sizes.tile)
        cosines = _cosines(content, content_beside, keys_of_layer, rows, others < end, slow, sizes)
        largest = tl.maximum(largest, tl.max(cosines, axis=1))
    step = tl.maximum(last_tile - first, sizes.tile)
    for first_other in range(first, last_tile + 1, step):
        rows = cache_rows(tile_blocks(table, first_other, end, sizes), first_other, kv_head, sizes)
        others = first_other + tl.arange(0, sizes.tile)
        cosines = _cosines(content, content_beside, keys_of_layer, rows, others < end, slow, sizes)
        is_later = (others[None, :] > entries[:, None]) & (others < end)[None, :]
        largest = tl.maximum(largest, tl.max(tl.where(is_later, cosines, -length[:, None]), axis=1))
    row = (tl.program_id(2).to(tl.int64) * sizes.num_kv_heads + kv_head) * max_entries
    tl.store(lengths + row + entries, length, mask=entries < last)
    tl.store(similarity + row + entries, largest / length, mask=entries < last)


@triton.jit
def _moments(values, first, last, tile: tl.constexpr):
    """Mean and standard deviation of the values from `first` to `last`."""
    total = 0.0
    for start in range(first, last, tile):
        places = start + tl.arange(0, tile)
        total += tl.sum(tl.load(values + places, mask=places < last, other=0.0))
    count = tl.maximum(last - first, 1)
    mean = total / count
    squares = 0.0
    for start in range(first, last, tile):
        places = start + tl.arange(0, tile)
        distance = tl.where(places < last, tl.load(values + places, mask=places < last, other=0.0) - mean, 0.0)
        squares += tl.sum(distance * distance)
    return mean, tl.maximum(tl.sqrt(squares / count), 1e-6)


@triton.jit(
    do_not_specialize=["rows_per_request", "max_entries"],
    do_not_specialize_on_alignment=["first_entry", "last_entry"],
)
def _standardise_kernel(
    anchor, similarity, first_entry, last_entry, rows_per_request, max_entries, steps: tl.constexpr,
    tile: tl.constexpr
):  # fmt: skip
    """From lengths, in `anchor`, and similarities to the sum of both standardised, the similarity's sign turned."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(first_entry + row // rows_per_request).to(tl.int32)
    last = tl.load(last_entry + row // rows_per_request).to(tl.int32)
    lengths, similarities = anchor + row * max_entries, similarity + row * max_entries
    mean_length, length_deviation = _moments(lengths, first, last, tile)
    mean_similarity, similarity_deviation = _moments(similarities, first, last, tile)
    for start in range(first, last, tile):
        places = start + tl.arange(0, tile)
        length = (tl.load(lengths + places, mask=places < last, other=0.0) - mean_length) / length_deviation
        likeness = tl.load(similarities + places, mask=places < last, other=0.0) - mean_similarity
        score = tl.floor((length - likeness / similarity_deviation) * steps + 0.5) / steps
        tl.store(lengths + places, score, mask=places < last)


@triton.jit(do_not_specialize=["rows_per_request", "max_kept", "max_entries"], do_not_specialize_on_alignment=["count"])
def _prefer_kernel(kept, count, final, rows_per_request, max_kept, max_entries, tile: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * tile + tl.arange(0, tile)
    valid = places < tl.load(count + row // rows_per_request).to(tl.int32)
    entries = tl.load(kept + row * max_kept + places, mask=valid, other=0)
    tl.store(final + row * max_entries + entries, float("inf"), mask=valid)
