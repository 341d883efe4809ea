"""The kernels of `redundancy` for pairs of keys inside spans, such as blocks."""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

from dataclasses import dataclass

import triton
import triton.language as tl

from zipage.kernels.write_kv import cache_rows, load_rows, tile_blocks

# Arguments whose values must not make new kernels.
NUMBERS = ["num_layers", "num_blocks", "max_blocks", "max_entries", "span"]
REQUESTS = ["block_tables", "num_entries"]


@dataclass(frozen=True)
class KeySizes:
    """What a kernel knows when it is compiled; `dim` is a power of two that holds a head."""

    num_kv_heads: int
    head_dim: int
    dim: int
    block_size: int
    tile: int


@triton.jit
def load_keys(keys_of_layer, blocks, first, length, kv_head, sizes: tl.constexpr):
    """Keys `[tile, dim]` from entry `first` on, zeros where there is none, and one over their lengths, float32."""
    rows = cache_rows(blocks, first, kv_head, sizes)
    keys = load_rows(keys_of_layer, rows, first + tl.arange(0, sizes.tile) < length, sizes)
    squares = tl.sum(keys.to(tl.float32) * keys.to(tl.float32), axis=1)
    return keys, 1.0 / tl.maximum(tl.sqrt(squares), 1e-12)


@triton.jit
def start_of_layer(key_cache, layer, num_blocks, sizes: tl.constexpr):
    return key_cache + layer.to(tl.int64) * num_blocks * (sizes.num_kv_heads * sizes.block_size * sizes.head_dim)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=REQUESTS)
def block_similarity_kernel(
    key_cache, num_layers, num_blocks, block_tables, max_blocks, num_entries, tau, similarity, max_entries,
    sizes: tl.constexpr, judge_sizes: tl.constexpr
):  # fmt: skip
    """One block, or several small ones: all its keys stay, and its judges come a tile at a time."""
    kv_head = tl.program_id(1)
    request, layer = tl.program_id(2) // num_layers, tl.program_id(2) % num_layers
    length = tl.load(num_entries + request).to(tl.int32)
    first = tl.program_id(0) * sizes.tile
    if first >= length:
        return
    table = block_tables + request.to(tl.int64) * max_blocks
    keys_of_layer = start_of_layer(key_cache, layer, num_blocks, sizes)
    entries = first + tl.arange(0, sizes.tile)
    blocks = tile_blocks(table, first, length, sizes)
    keys, inverse = load_keys(keys_of_layer, blocks, first, length, kv_head, sizes)
    total = tl.full([sizes.tile], 0.0, tl.float32)
    blocks = tile_blocks(table, first, length, judge_sizes)
    for first_judge in range(first, first + sizes.tile, judge_sizes.tile):
        judges = first_judge + tl.arange(0, judge_sizes.tile)
        judging, judge_inverse = load_keys(keys_of_layer, blocks, first_judge, length, kv_head, judge_sizes)
        # One tile ahead: keys that the compiler loads early must not wait for the number of their block.
        blocks = tile_blocks(table, first_judge + judge_sizes.tile, length, judge_sizes)
        cosine = tl.dot(keys, tl.trans(judging)) * inverse[:, None] * judge_inverse[None, :]
        judged = entries[:, None] != judges[None, :]
        if sizes.block_size < sizes.tile:
            judged = judged & ((entries // sizes.block_size)[:, None] == (judges // sizes.block_size)[None, :])
        spared = tl.max(tl.where(judged & (cosine > tau), entries[:, None], -1), axis=0)
        total += tl.sum(tl.where(judged & (entries[:, None] != spared[None, :]), cosine, 0.0), axis=1)
    count = tl.minimum(length - entries // sizes.block_size * sizes.block_size, sizes.block_size)
    row = tl.program_id(2).to(tl.int64) * sizes.num_kv_heads + kv_head
    tl.store(similarity + row * max_entries + entries, total / tl.maximum(count, 1), mask=entries < length)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=REQUESTS)
def span_similarity_kernel(
    key_cache, num_layers, num_blocks, block_tables, max_blocks, num_entries, tau, similarity, max_entries, spared,
    span, sizes: tl.constexpr, other_sizes: tl.constexpr, has_many_spans: tl.constexpr, is_first_pass: tl.constexpr
):  # fmt: skip
    """A tile of entries against all others of their spans: as judges in the first pass, as judged in the second."""
    kv_head = tl.program_id(1)
    request, layer = tl.program_id(2) // num_layers, tl.program_id(2) % num_layers
    length = tl.load(num_entries + request).to(tl.int32)
    first = tl.program_id(0) * sizes.tile
    if first >= length:
        return
    table = block_tables + request.to(tl.int64) * max_blocks
    keys_of_layer = start_of_layer(key_cache, layer, num_blocks, sizes)
    row = (tl.program_id(2).to(tl.int64) * sizes.num_kv_heads + kv_head) * max_entries
    entries = first + tl.arange(0, sizes.tile)
    blocks = tile_blocks(table, first, length, sizes)
    keys, inverse = load_keys(keys_of_layer, blocks, first, length, kv_head, sizes)
    last_similar = tl.full([sizes.tile], -1, tl.int32)
    total = tl.full([sizes.tile], 0.0, tl.float32)
    stop = tl.minimum(tl.cdiv(first + sizes.tile, span) * span, length)
    blocks = tile_blocks(table, first // span * span, length, other_sizes)
    for first_other in range(first // span * span, stop, other_sizes.tile):
        others = first_other + tl.arange(0, other_sizes.tile)
        other_keys, other_inverse = load_keys(keys_of_layer, blocks, first_other, length, kv_head, other_sizes)
        blocks = tile_blocks(table, first_other + other_sizes.tile, length, other_sizes)
        cosine = tl.dot(keys, tl.trans(other_keys), input_precision="ieee")
        cosine = cosine * inverse[:, None] * other_inverse[None, :]
        judged = entries[:, None] != others[None, :]
        if has_many_spans:
            judged = judged & ((entries // span)[:, None] == (others // span)[None, :])
        if is_first_pass:
            similar = judged & (cosine > tau) & (others < length)[None, :]
            last_similar = tl.maximum(last_similar, tl.max(tl.where(similar, others[None, :], -1), axis=1))
        else:
            spared_by_other = tl.load(spared + row + others, mask=others < length, other=-1)
            judged = judged & (entries[:, None] != spared_by_other[None, :])
            total += tl.sum(tl.where(judged, cosine, 0.0), axis=1)
    if is_first_pass:
        tl.store(spared + row + entries, last_similar, mask=entries < length)
    else:
        count = tl.maximum(tl.minimum(length - entries // span * span, span), 1)
        tl.store(similarity + row + entries, total / count, mask=entries < length)
