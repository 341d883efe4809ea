"""The paged KV cache of one layer: how entries lie in it, and the operation that writes them.

The entry of slot `s` and KV head `h` is vector `(s // b * Hkv + h) * b + s % b` of a cache `[num_blocks, Hkv, b, d]`.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_INTEGERS = (torch.int32, torch.int64)
# Heads that one program writes: with d = 128, one access of 16 bytes for each thread and half of a head in bf16.
_ROWS = 16


@dataclass(frozen=True)
class _Sizes:
    """What the kernel knows when it is compiled; `half` is a power of two that holds half a head."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    half: int
    rows: int


def write_kv(
    qkv: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    positions: Tensor,
    rotary_table: Tensor,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    observed: Tensor | None = None,
    query_slots: Tensor | None = None,
    query_rows: Tensor | None = None,
) -> Tensor:
    """Normalise and rotate queries and keys, write keys and values to the cache, and record queries.

    What `zipage.models.layers.HeadNorm`, `zipage.models.rope.rotate`, `reference.write_kv` and
    `reference.write_queries` do one after another, rounded once.

    Args:
        qkv: `[T, (Hq + 2 * Hkv) * d]`, query, key and value heads in turn, each token contiguous.
        key_cache, value_cache: `[num_blocks, Hkv, b, d]`, of qkv's dtype, written in place.
        slot_mapping: `[T]` int32 or int64, where each token goes, no slot twice; -1 writes no key and no value.
        positions: `[T]` int32 or int64, rows of the rotary table, also where the slot is -1.
        rotary_table: `[num_positions, 2 * d]` of `zipage.models.rope.rotary_table`, of qkv's dtype.
        norm_weight: `[Hq + Hkv, d]`, a weight for each query and key head; None does not normalise.
        norm_eps: added to the mean square.
        observed: `[num_blocks, Hkv, b]` float32, set to 0 for what is written.
        query_slots: `[M, w, Hq, d]` of qkv's dtype, where queries are recorded for a compression; None for nowhere.
        query_rows: `[T]` int32 or int64, `slot * w + row in the slot` of each token's query, none twice; -1 records
            nothing. Given with `query_slots`.

    Returns:
        `[T, Hq, d]`: the queries.

    Raises:
        ValueError: shapes, strides or dtypes other than these.
    """
    check_paged_cache(key_cache, value_cache, observed)
    num_kv_heads, block_size, head_dim = key_cache.shape[1:]
    num_tokens, width = len(qkv), qkv.shape[-1]
    num_heads = width // head_dim - 2 * num_kv_heads
    if qkv.dim() != 2 or width % head_dim or num_heads < 1 or num_heads % num_kv_heads or qkv.stride(1) != 1:
        raise ValueError(f"qkv must be [T, (Hq + {2 * num_kv_heads}) * {head_dim}] with contiguous tokens")
    if norm_weight is not None and (
        norm_weight.shape != (num_heads + num_kv_heads, head_dim) or not norm_weight.is_contiguous()
    ):
        raise ValueError(f"norm_weight must be contiguous [{num_heads + num_kv_heads}, {head_dim}]")
    if rotary_table.dim() != 2 or rotary_table.shape[1] != 2 * head_dim or not rotary_table.is_contiguous():
        raise ValueError(f"rotary_table must be contiguous [num_positions, {2 * head_dim}]")
    for name, tensor in (("key_cache", key_cache), ("rotary_table", rotary_table)):
        if tensor.dtype != qkv.dtype:
            raise ValueError(f"{name} must be in qkv's dtype {qkv.dtype}, not {tensor.dtype}")
    check_integers("slot_mapping", slot_mapping, num_tokens)
    check_integers("positions", positions, num_tokens)
    _check_recording(query_slots, query_rows, qkv, num_heads, head_dim)
    query = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    num_vectors = num_tokens * width // head_dim
    sizes = _Sizes(num_heads, num_kv_heads, head_dim, block_size, triton.next_power_of_2(head_dim // 2), _ROWS)
    if num_vectors:
        _write_kernel[(triton.cdiv(num_vectors, _ROWS),)](
            qkv, qkv.stride(0), slot_mapping, positions, rotary_table, norm_weight, norm_eps,
            query, key_cache, value_cache, observed, query_slots, query_rows, num_vectors, sizes, num_warps=4,
        )  # fmt: skip
    return query


def _check_recording(
    query_slots: Tensor | None, query_rows: Tensor | None, qkv: Tensor, num_heads: int, head_dim: int
) -> None:
    if (query_slots is None) != (query_rows is None):
        raise ValueError("query_slots and query_rows must be given both or neither")
    if query_slots is not None and query_rows is not None:
        if query_slots.dim() != 4 or query_slots.shape[2:] != (num_heads, head_dim) or not query_slots.is_contiguous():
            raise ValueError(f"query_slots must be contiguous [M, w, {num_heads}, {head_dim}]")
        if query_slots.dtype != qkv.dtype:
            raise ValueError(f"query_slots must be in qkv's dtype {qkv.dtype}, not {query_slots.dtype}")
        check_integers("query_rows", query_rows, len(qkv))


def check_paged_cache(key_cache: Tensor, value_cache: Tensor, observed: Tensor | None) -> None:
    """Raise a ValueError unless these are the cache of one layer that kernels take."""
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    if key_cache.dim() != 4 or not key_cache.is_contiguous() or key_cache.dtype not in dtypes:
        raise ValueError("key_cache must be contiguous [num_blocks, Hkv, b, d] in bfloat16, float16 or float32")
    if value_cache.shape != key_cache.shape or value_cache.dtype != key_cache.dtype or not value_cache.is_contiguous():
        raise ValueError("value_cache must be contiguous, of key_cache's shape and dtype")
    block_size, head_dim = key_cache.shape[2:]
    if block_size not in (8, 16, 32, 64, 128, 256):
        raise ValueError(f"the block size of key_cache must be a power of two from 8 to 256, not {block_size}")
    if head_dim % 8 or not 16 <= head_dim <= 256:
        raise ValueError(f"the head size of key_cache must be a multiple of 8 from 16 to 256, not {head_dim}")
    if observed is not None and (
        observed.shape != key_cache.shape[:3] or observed.dtype != torch.float32 or not observed.is_contiguous()
    ):
        raise ValueError("observed must be contiguous [num_blocks, Hkv, b] in float32")


def check_integers(name: str, tensor: Tensor, size: int) -> None:
    """Raise a ValueError unless `tensor` is a vector of `size` integers."""
    if tensor.shape != (size,) or tensor.dtype not in _INTEGERS or tensor.stride(0) != 1:
        raise ValueError(
            f"{name} must be contiguous [{size}] in int32 or int64, not {list(tensor.shape)} in {tensor.dtype}"
        )


def check_attention_inputs(
    query: Tensor, key_cache: Tensor, block_tables: Tensor, resident_lengths: Tensor, output: Tensor
) -> None:
    """Raise a ValueError unless queries `[T, Hq, d]` can attend to the cache through these tables."""
    num_kv_heads, head_dim = key_cache.shape[1], key_cache.shape[3]
    if query.dim() != 3 or query.shape[1] % num_kv_heads or query.shape[2] != head_dim:
        raise ValueError(f"query must be [T, a multiple of {num_kv_heads}, {head_dim}], not {list(query.shape)}")
    if output.shape != query.shape:
        raise ValueError(f"output must be {list(query.shape)} like query, not {list(output.shape)}")
    for name, tensor in (("query", query), ("output", output)):
        if tensor.dtype != key_cache.dtype or tensor.stride()[1:] != (head_dim, 1):
            raise ValueError(f"{name} must be in the caches' dtype, the heads of a token contiguous")
    if block_tables.dim() != 2 or block_tables.dtype not in _INTEGERS or block_tables.stride(1) != 1:
        raise ValueError("block_tables must be [requests, max_blocks] in int32 or int64, rows contiguous")
    check_integers("resident_lengths", resident_lengths, block_tables.shape[0])


@triton.jit
def tile_blocks(block_table, first_entry, length, sizes: tl.constexpr):
    """The blocks of a tile of a request's entries: one where a block holds a whole tile, otherwise `[tile]`.

    `first_entry` is a multiple of the tile's size; entries from `length` on have block 0.
    """
    if sizes.tile <= sizes.block_size:
        blocks = tl.load(block_table + first_entry // sizes.block_size, mask=first_entry < length, other=0)
    else:
        entries = first_entry + tl.arange(0, sizes.tile)
        blocks = tl.load(block_table + entries // sizes.block_size, mask=entries < length, other=0)
    return blocks.to(tl.int32)


@triton.jit
def cache_rows(blocks, first_entry, head, sizes: tl.constexpr):
    """`[tile]` int64: the vectors of a cache that hold a tile of entries with these `tile_blocks`."""
    offsets = tl.arange(0, sizes.tile)
    # A tile inside a block is contiguous, which the compiler must see.
    offsets = offsets + first_entry % sizes.block_size if sizes.tile <= sizes.block_size else offsets % sizes.block_size
    return (blocks.to(tl.int64) * sizes.num_kv_heads + head) * sizes.block_size + offsets


@triton.jit
def load_rows(pointer, rows, valid, sizes: tl.constexpr):
    """`[len(rows), dim]`: vectors of `head_dim` in memory; zeros where not `valid` and from `head_dim` on."""
    dims = tl.arange(0, sizes.dim)
    pointers = pointer + rows[:, None] * sizes.head_dim + dims[None, :]
    if sizes.dim == sizes.head_dim:
        vectors = tl.load(pointers, mask=valid[:, None], other=0.0)
    else:
        vectors = tl.load(pointers, mask=valid[:, None] & (dims < sizes.head_dim)[None, :], other=0.0)
    return vectors


@triton.jit
def _rotate(first, second, mask, tokens, positions, rotary_table, sizes: tl.constexpr):
    """Rotate the halves `[rows, half]` of heads: a row of the table is cosines twice, negated sines, sines."""
    position = tl.load(positions + tokens, mask=mask, other=0).to(tl.int64)
    halves = tl.arange(0, sizes.half)
    pointers = rotary_table + position[:, None] * (2 * sizes.head_dim) + halves[None, :]
    mask = mask[:, None] & (halves < sizes.head_dim // 2)[None, :]
    cosines = tl.load(pointers, mask=mask, other=1.0).to(tl.float32)
    sines = tl.load(pointers + 3 * (sizes.head_dim // 2), mask=mask, other=0.0).to(tl.float32)
    return first * cosines - second * sines, second * cosines + first * sines


@triton.jit
def _store_halves(pointer, rows, first, second, mask, sizes: tl.constexpr):
    """Store the halves of heads as vectors `rows` of `head_dim`."""
    halves = tl.arange(0, sizes.half)
    pointers = pointer + rows[:, None] * sizes.head_dim + halves[None, :]
    mask = mask[:, None] & (halves < sizes.head_dim // 2)[None, :]
    tl.store(pointers, first.to(pointer.dtype.element_ty), mask=mask)
    tl.store(pointers + sizes.head_dim // 2, second.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["num_vectors"],
    do_not_specialize_on_alignment=["slot_mapping", "positions", "observed", "query_rows"],
)
def _write_kernel(
    qkv, token_stride, slot_mapping, positions, rotary_table, norm_weight, norm_eps,
    query, key_cache, value_cache, observed, query_slots, query_rows, num_vectors, sizes: tl.constexpr
):  # fmt: skip
    """`rows` heads of any tokens for each program."""
    vectors = tl.program_id(0).to(tl.int64) * sizes.rows + tl.arange(0, sizes.rows)
    exists = vectors < num_vectors
    tokens = vectors // (sizes.num_heads + 2 * sizes.num_kv_heads)
    heads = vectors % (sizes.num_heads + 2 * sizes.num_kv_heads)
    is_value = heads >= sizes.num_heads + sizes.num_kv_heads
    is_rotated = exists & (heads < sizes.num_heads + sizes.num_kv_heads)

    halves = tl.arange(0, sizes.half)
    in_half = (halves < sizes.head_dim // 2)[None, :]
    pointers = qkv + (tokens * token_stride + heads * sizes.head_dim)[:, None] + halves[None, :]
    first = tl.load(pointers, mask=exists[:, None] & in_half, other=0.0).to(tl.float32)
    second = tl.load(pointers + sizes.head_dim // 2, mask=exists[:, None] & in_half, other=0.0).to(tl.float32)
    value_first, value_second = first, second
    if norm_weight is not None:
        inverse = tl.rsqrt(tl.sum(first * first + second * second, 1) / sizes.head_dim + norm_eps)[:, None]
        weights = norm_weight + heads[:, None] * sizes.head_dim + halves[None, :]
        weight_mask = is_rotated[:, None] & in_half
        first *= inverse * tl.load(weights, mask=weight_mask, other=0.0).to(tl.float32)
        second *= inverse * tl.load(weights + sizes.head_dim // 2, mask=weight_mask, other=0.0).to(tl.float32)
    first, second = _rotate(first, second, is_rotated, tokens, positions, rotary_table, sizes)
    first = tl.where(is_value[:, None], value_first, first)
    second = tl.where(is_value[:, None], value_second, second)

    is_query = exists & (heads < sizes.num_heads)
    _store_halves(query, tokens * sizes.num_heads + heads, first, second, is_query, sizes)
    if query_slots is not None:
        recorded = tl.load(query_rows + tokens, mask=is_query, other=-1).to(tl.int64)
        _store_halves(query_slots, recorded * sizes.num_heads + heads, first, second, recorded >= 0, sizes)
    slots = tl.load(slot_mapping + tokens, mask=exists & (heads >= sizes.num_heads), other=-1).to(tl.int64)
    kv_heads = (heads - sizes.num_heads) % sizes.num_kv_heads
    rows = (slots // sizes.block_size * sizes.num_kv_heads + kv_heads) * sizes.block_size + slots % sizes.block_size
    is_key = (slots >= 0) & (heads < sizes.num_heads + sizes.num_kv_heads)
    _store_halves(key_cache, rows, first, second, is_key, sizes)
    _store_halves(value_cache, rows, first, second, (slots >= 0) & is_value, sizes)
    if observed is not None:
        tl.store(observed + rows, 0.0, mask=is_key)
