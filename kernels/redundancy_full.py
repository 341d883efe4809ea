"""The kernels of `redundancy` for all pairs of keys of a request, of which only some have to be looked at.

What all judges together hold against a key is the product of its direction with the sum of all directions. From that
comes off what it holds against itself and what the judges that spare it hold against it.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from zipage.kernels.redundancy_pairs import NUMBERS, REQUESTS, load_keys, start_of_layer
from zipage.kernels.write_kv import cache_rows, load_rows, tile_blocks

# Tiles of keys that are searched before the first look at what is still missing.
_FIRST_TILES = tl.constexpr(1)
# Sums of directions that are added up at once.
_SUM_TILE = tl.constexpr(16)


@triton.jit(do_not_specialize=[*NUMBERS, "num_sums"], do_not_specialize_on_alignment=REQUESTS)
def direction_sum_kernel(
    key_cache, num_layers, num_blocks, block_tables, max_blocks, num_entries, sums, num_sums, inverses,
    max_entries, sizes: tl.constexpr
):  # fmt: skip
    """The sum of the directions of one tile of keys, and one over their lengths."""
    kv_head = tl.program_id(1)
    request, layer = tl.program_id(2) // num_layers, tl.program_id(2) % num_layers
    length = tl.load(num_entries + request).to(tl.int32)
    first = tl.program_id(0) * sizes.tile
    if first >= length:
        return
    blocks = tile_blocks(block_tables + request.to(tl.int64) * max_blocks, first, length, sizes)
    keys_of_layer = start_of_layer(key_cache, layer, num_blocks, sizes)
    keys, inverse = load_keys(keys_of_layer, blocks, first, length, kv_head, sizes)
    total = tl.sum(keys.to(tl.float32) * inverse[:, None], axis=0)
    head_row = tl.program_id(2).to(tl.int64) * sizes.num_kv_heads + kv_head
    tl.store(sums + (head_row * num_sums + tl.program_id(0)) * sizes.dim + tl.arange(0, sizes.dim), total)
    entries = first + tl.arange(0, sizes.tile)
    tl.store(inverses + head_row * max_entries + entries, inverse, mask=entries < length)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=REQUESTS)
def spared_kernel(
    key_cache, num_layers, num_blocks, block_tables, max_blocks, num_entries, tau, inverses, spared,
    max_entries, sizes: tl.constexpr, other_sizes: tl.constexpr
):  # fmt: skip
    """Which key each of a tile of judges spares: the cosine is added to the key's `spared`, in units of 2 ** -40.

    The search begins with the last keys and ends when every judge has found one: early, where many keys are similar.
    """
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
    keys = load_rows(keys_of_layer, cache_rows(blocks, first, kv_head, sizes), entries < length, sizes)
    row = (tl.program_id(2).to(tl.int64) * sizes.num_kv_heads + kv_head) * max_entries
    inverse = tl.load(inverses + row + entries, mask=entries < length, other=1.0)
    least = tau / inverse
    last_similar = tl.full([sizes.tile], -1, tl.int32)
    missing = 1
    stop = tl.cdiv(length, other_sizes.tile) * other_sizes.tile
    stretch = _FIRST_TILES * other_sizes.tile
    while (stop > 0) & (missing > 0):
        start = tl.maximum(stop - stretch, 0)
        other_blocks = tile_blocks(table, start, length, other_sizes)
        for first_other in range(start, stop, other_sizes.tile):
            others = first_other + tl.arange(0, other_sizes.tile)
            other_rows = cache_rows(other_blocks, first_other, kv_head, other_sizes)
            other_keys = load_rows(keys_of_layer, other_rows, others < length, other_sizes)
            # Nothing is greater than NaN or less.
            other_inverse = tl.load(inverses + row + others, mask=others < length, other=float("nan"))
            # One tile ahead: keys that the compiler loads early must not wait for the number of their block.
            other_blocks = tile_blocks(table, first_other + other_sizes.tile, length, other_sizes)
            product = tl.dot(keys, tl.trans(other_keys), input_precision="ieee") * other_inverse[None, :]
            similar = (product > least[:, None]) & (entries[:, None] != others[None, :])
            last_similar = tl.maximum(last_similar, tl.max(tl.where(similar, others[None, :], -1), axis=1))
        missing = tl.sum(((last_similar < 0) & (entries < length)).to(tl.int32))
        stop = start
        stretch *= 2
    found = (last_similar >= 0) & (entries < length)
    block = tl.load(table + last_similar // sizes.block_size, mask=found, other=0).to(tl.int64)
    rows = (block * sizes.num_kv_heads + kv_head) * sizes.block_size + last_similar % sizes.block_size
    last_keys = load_rows(keys_of_layer, rows, found, sizes).to(tl.float32)
    last_inverse = tl.load(inverses + row + last_similar, mask=found, other=0.0)
    cosine = tl.sum(keys.to(tl.float32) * last_keys, axis=1) * inverse * last_inverse
    # Integers, so that the order of the additions makes no difference.
    tl.atomic_add(spared + row + last_similar, (cosine * 1099511627776.0).to(tl.int64), mask=found, sem="relaxed")


@triton.jit(do_not_specialize=[*NUMBERS, "num_sums"], do_not_specialize_on_alignment=REQUESTS)
def full_similarity_kernel(
    key_cache, num_layers, num_blocks, block_tables, max_blocks, num_entries, sums, num_sums, inverses, spared,
    similarity, max_entries, sizes: tl.constexpr
):  # fmt: skip
    """The mean similarity of a tile of keys to all others."""
    kv_head = tl.program_id(1)
    request, layer = tl.program_id(2) // num_layers, tl.program_id(2) % num_layers
    length = tl.load(num_entries + request).to(tl.int32)
    first = tl.program_id(0) * sizes.tile
    if first >= length:
        return
    entries = first + tl.arange(0, sizes.tile)
    blocks = tile_blocks(block_tables + request.to(tl.int64) * max_blocks, first, length, sizes)
    keys_of_layer = start_of_layer(key_cache, layer, num_blocks, sizes)
    keys = load_rows(keys_of_layer, cache_rows(blocks, first, kv_head, sizes), entries < length, sizes)
    head_row = tl.program_id(2).to(tl.int64) * sizes.num_kv_heads + kv_head
    dims = tl.arange(0, sizes.dim)
    parts = tl.full([_SUM_TILE, sizes.dim], 0.0, tl.float32)
    for first_sum in range(0, tl.cdiv(length, sizes.tile), _SUM_TILE):
        places = first_sum + tl.arange(0, _SUM_TILE)
        pointers = sums + (head_row * num_sums + places)[:, None] * sizes.dim + dims[None, :]
        parts += tl.load(pointers, mask=(places * sizes.tile < length)[:, None], other=0.0)
    inverse = tl.load(inverses + head_row * max_entries + entries, mask=entries < length, other=1.0)
    total = tl.sum(keys.to(tl.float32) * tl.sum(parts, axis=0)[None, :], axis=1) * inverse
    # Itself, unless it has no direction.
    total -= tl.where(inverse < 1e11, 1.0, 0.0)
    lost = tl.load(spared + head_row * max_entries + entries, mask=entries < length, other=0)
    total -= lost.to(tl.float32) * (1.0 / 1099511627776.0)
    tl.store(similarity + head_row * max_entries + entries, total / length, mask=entries < length)
