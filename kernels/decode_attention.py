"""Paged decode attention: one query per request over the entries in its pages.

The tiles of all requests and KV heads form one sequence, of which every program takes an equal share, so the device is
evenly busy whatever the lengths are, and the grid does not depend on them. The parts of a head that falls into several
shares are combined by the last of its programs to finish. Where a share is about a head long and there is a program for
each, every program takes one head as a whole.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipage.kernels.write_kv import cache_rows, check_attention_inputs, check_paged_cache, load_rows, tile_blocks

# log2(e): the kernels work with powers of two.
LOG2_E = 1.4426950408889634
# Entries in the smallest share: smaller ones cost more to combine than they gain.
_SMALLEST_SHARE = 128


@dataclass(frozen=True)
class _Division:
    """How a multiprocessor is divided: programs on it at once, and warps, tiles under way and bytes of a tile of each.

    A tile's bytes are those of its keys and values.
    """

    programs: int
    num_warps: int
    num_stages: int
    tile_bytes: int


# Memory is kept as busy by one program of large tiles as by four of small ones.
_ONE, _TWO, _FOUR = _Division(1, 8, 4, 64 << 10), _Division(2, 4, 3, 32 << 10), _Division(4, 2, 4, 16 << 10)


@dataclass(frozen=True)
class DecodeWorkspace:
    """Where the parts of a head meet. Calls that may run at the same time need one each.

    Attributes:
        num_multiprocessors: over which programs are spread.
        counters: `[P]` int32, zero between calls; P is the largest number of programs of a call.
        log_sum_exp: `[P, 2, G]` float32, of each program's part of a head that another began and of one that it begins.
        output: `[P, 2, G, d]` float32, likewise.
    """

    num_multiprocessors: int
    counters: Tensor
    log_sum_exp: Tensor
    output: Tensor


@dataclass(frozen=True)
class _Sizes:
    """What the kernels know when they are compiled; `rows`, `dim` and `batch` are group, head size and B, padded."""

    num_kv_heads: int
    group: int
    head_dim: int
    block_size: int
    tile: int
    quantum: int
    rows: int
    dim: int
    batch: int


def decode_workspace(num_heads: int, num_kv_heads: int, head_dim: int, device: torch.device) -> DecodeWorkspace:
    """Allocate what `paged_decode_attention` needs for any batch of a model with Hq, Hkv and d as given."""
    num_multiprocessors = 3  # where the interpreter runs programs, one after another
    if device.type == "cuda":
        num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    num_programs = _FOUR.programs * num_multiprocessors
    parts = (num_programs, 2, num_heads // num_kv_heads)
    return DecodeWorkspace(
        num_multiprocessors,
        counters=torch.zeros(num_programs, dtype=torch.int32, device=device),
        log_sum_exp=torch.empty(parts, dtype=torch.float32, device=device),
        output=torch.empty(*parts, head_dim, dtype=torch.float32, device=device),
    )


def paged_decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    resident_lengths: Tensor,
    scale: float,
    workspace: DecodeWorkspace,
    observed: Tensor | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """Attention of one query per request over the request's resident entries: `reference.paged_decode_attention`.

    Args:
        query: `[B, Hq, d]` of the caches' dtype, the heads of a token contiguous.
        key_cache, value_cache: `[num_blocks, Hkv, b, d]`, bfloat16, float16 or float32.
        block_tables: `[B, max_blocks]` int32 or int64; places past a request's own blocks are not read.
        resident_lengths: `[B]` int32 or int64, counts the token just written; 0 gives zeros and touches nothing.
        scale: factor of `q . k`.
        workspace: of `decode_workspace`.
        observed: `[num_blocks, Hkv, b]` float32; gains, for every entry a query attends to, the largest probability
            among the query heads of the entry's KV head. The output is the same bits with and without it.
        output: `[B, Hq, d]`, the heads of a token contiguous; allocated if None.

    Returns:
        `[B, Hq, d]`, `output` if given.

    Raises:
        ValueError: shapes, strides or dtypes other than these.
    """
    check_paged_cache(key_cache, value_cache, observed)
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device) if output is None else output
    check_attention_inputs(query, key_cache, block_tables, resident_lengths, output)
    if len(block_tables) != len(query):
        raise ValueError(f"block_tables must have a row for each of {len(query)} queries, not {len(block_tables)}")
    division = _division(len(query) * key_cache.shape[1] / workspace.num_multiprocessors)
    sizes = _sizes(query, key_cache, division.tile_bytes)
    if workspace.output.shape[2:] != (sizes.group, sizes.head_dim):
        raise ValueError(f"workspace must be that of groups of {sizes.group} heads of size {sizes.head_dim}")
    if not len(query):
        return output
    log_sum_exp = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    grid = (division.programs * workspace.num_multiprocessors,)
    options = {"sizes": sizes, "num_warps": division.num_warps, "num_stages": division.num_stages}
    requests = (query, query.stride(0), block_tables, block_tables.stride(0), resident_lengths, len(query))
    parts = (workspace.counters, workspace.log_sum_exp, workspace.output)
    factor, stride = scale * LOG2_E, output.stride(0)
    _attend_kernel[grid](*requests, factor, key_cache, log_sum_exp, value_cache, output, stride, *parts, **options)
    if observed is not None:
        _observe_kernel[grid](*requests, factor, key_cache, log_sum_exp, observed, **options)
    return output


def _division(heads_per_multiprocessor: float) -> _Division:
    """About as many programs as KV heads of requests: most heads are one program's alone, and are not combined."""
    if heads_per_multiprocessor < 1.5:
        return _ONE
    return _TWO if heads_per_multiprocessor < 3 else _FOUR


def _sizes(query: Tensor, key_cache: Tensor, tile_bytes: int) -> _Sizes:
    num_kv_heads, block_size, head_dim = key_cache.shape[1:]
    group = query.shape[1] // num_kv_heads
    dim = max(16, triton.next_power_of_2(head_dim))
    tile = max(16, min(128, tile_bytes // (2 * dim * key_cache.itemsize)))
    rows, batch = max(16, triton.next_power_of_2(group)), max(64, triton.next_power_of_2(len(query)))
    return _Sizes(num_kv_heads, group, head_dim, block_size, tile, _SMALLEST_SHARE // tile, rows, dim, batch)


@triton.jit
def _divide(resident_lengths, batch, sizes: tl.constexpr):
    """How the tiles of all requests and KV heads are divided among the programs.

    Returns:
        ends: `[sizes.batch]`, places in the sequence of tiles up to each request's end; an empty request has none.
        whole: 0, or, where every program takes a whole head, the places that each head has; some may have no tile.
        share, first, last: places of a program; where this one's begin and end.
    """
    requests = tl.arange(0, sizes.batch)
    lengths = tl.load(resident_lengths + requests, mask=requests < batch, other=0).to(tl.int32)
    num_tiles = tl.cdiv(lengths, sizes.tile)
    ends = tl.cumsum(num_tiles * sizes.num_kv_heads, 0)
    num_places, num_heads, longest = tl.max(ends, 0), batch * sizes.num_kv_heads, tl.max(num_tiles, 0)
    # In quanta, so that shares often end where a head does.
    share = tl.cdiv(tl.cdiv(num_places, tl.num_programs(0)), sizes.quantum) * sizes.quantum
    whole = 0
    # What it costs to combine outweighs a quarter of a share.
    if (num_heads <= tl.num_programs(0)) & (4 * longest <= 5 * share):
        whole, share, num_places = longest, longest, num_heads * longest
        ends = tl.minimum(requests + 1, batch) * sizes.num_kv_heads * longest
    first = tl.program_id(0) * share
    return ends, whole, share, first, tl.minimum(first + share, num_places)


@triton.jit
def _locate(place, last, ends, whole, resident_lengths, sizes: tl.constexpr):
    """Where a place in the sequence is, and how far a program that ends at `last` goes on in its head.

    Returns:
        request, head, length: the request, its KV head and its entries.
        first, end: tiles of the head from this place on.
        head_places, places: of the head, and those up to its end or to `last`.
    """
    passed = ends <= place
    request = tl.sum(passed.to(tl.int32), 0).to(tl.int64)
    place_in_request = place - tl.max(tl.where(passed, ends, 0), 0)
    length = tl.load(resident_lengths + request).to(tl.int32)
    num_tiles = tl.cdiv(length, sizes.tile)
    head_places = tl.maximum(whole, num_tiles)
    head, first = place_in_request // head_places, place_in_request % head_places
    places = tl.minimum(head_places - first, last - place)
    return request, head, length, first, tl.minimum(num_tiles, first + places), head_places, places


@triton.jit
def _clear_empty_requests(resident_lengths, batch, output, output_stride, sizes: tl.constexpr):
    """Zeros for the requests without entries, spread over the programs: a tile for each head would be a long share."""
    size: tl.constexpr = sizes.num_kv_heads * sizes.group * sizes.head_dim
    for request in range(tl.program_id(0), batch, tl.num_programs(0)):
        if tl.load(resident_lengths + request) == 0:
            for first in range(0, size, 1024):
                places = first + tl.arange(0, 1024)
                zeros = tl.zeros([1024], output.dtype.element_ty)
                tl.store(output + tl.cast(request, tl.int64) * output_stride + places, zeros, mask=places < size)


@triton.jit
def _attend_tiles(queries, key_cache, value_cache, block_table, head, first, end, length, factor, sizes: tl.constexpr):
    """Attention over the tiles from `first` to `end`: output `[rows, dim]` and log-sum-exp `[rows]`, base 2."""
    # Finite, and so is the log-sum-exp of an empty request, which has no tile.
    largest = tl.full([sizes.rows], -1e30, tl.float32)
    total = tl.full([sizes.rows], 0.0, tl.float32)
    accumulated = tl.full([sizes.rows, sizes.dim], 0.0, tl.float32)
    blocks = tile_blocks(block_table, first * sizes.tile, length, sizes)
    for tile in range(first, end):
        rows = cache_rows(blocks, tile * sizes.tile, head, sizes)
        # One tile ahead: the addresses of a load that the compiler starts early must not wait for another load.
        blocks = tile_blocks(block_table, (tile + 1) * sizes.tile, length, sizes)
        valid = tile * sizes.tile + tl.arange(0, sizes.tile) < length
        keys = load_rows(key_cache, rows, valid, sizes)
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * factor
        logits = tl.where(valid[None, :], logits, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits - larger[:, None])
        decay = tl.exp2(largest - larger)
        total = total * decay + tl.sum(weights, 1)
        largest = larger
        values = load_rows(value_cache, rows, valid, sizes)
        accumulated = tl.dot(weights.to(values.dtype), values, accumulated * decay[:, None], input_precision="ieee")
    return _normalise(accumulated, largest, total)


@triton.jit
def _combine_parts(part_log_sum_exp, part_output, first_program, num_parts, sizes: tl.constexpr):
    """Output `[rows, dim]` and log-sum-exp `[rows]` of a head from the parts of consecutive programs."""
    heads, dims, few = tl.arange(0, sizes.rows), tl.arange(0, sizes.dim), tl.arange(0, 2)
    largest = tl.full([sizes.rows], -1e30, tl.float32)
    total = tl.full([sizes.rows], 0.0, tl.float32)
    accumulated = tl.full([sizes.rows, sizes.dim], 0.0, tl.float32)
    for first_part in range(0, num_parts, 2):
        parts = first_part + few
        # The first program begins the head, the others go on with it.
        rows = (2 * (first_program + parts) + (parts == 0).to(tl.int32))[:, None] * sizes.group + heads[None, :]
        mask = (parts < num_parts)[:, None] & (heads < sizes.group)[None, :]
        # From beyond the first-level cache, which does not see what other multiprocessors write.
        exponents = tl.load(part_log_sum_exp + rows, mask=mask, other=float("-inf"), cache_modifier=".cg")
        pointers = part_output + rows[:, :, None] * sizes.head_dim + dims[None, None, :]
        mask = mask[:, :, None] & (dims < sizes.head_dim)[None, None, :]
        outputs = tl.load(pointers, mask=mask, other=0.0, cache_modifier=".cg")
        larger = tl.maximum(largest, tl.max(exponents, 0))
        weights = tl.exp2(exponents - larger[None, :])
        decay = tl.exp2(largest - larger)
        total = total * decay + tl.sum(weights, 0)
        accumulated = accumulated * decay[:, None] + tl.sum(outputs * weights[:, :, None], 0)
        largest = larger
    return _normalise(accumulated, largest, total)


@triton.jit
def _normalise(accumulated, largest, total):
    """Output and log-sum-exp of weights relative to `largest`; zeros where there are none."""
    total = tl.where(total > 0, total, 1.0)
    return accumulated / total[:, None], largest + tl.log2(total)


@triton.jit
def _store_group(values, exponents, output, log_sum_exp, sizes: tl.constexpr):
    """Store a group's output `[rows, dim]` and log-sum-exp `[rows]` at those of its first head."""
    heads, dims = tl.arange(0, sizes.rows), tl.arange(0, sizes.dim)
    tl.store(log_sum_exp + heads, exponents, mask=heads < sizes.group)
    mask = (heads < sizes.group)[:, None] & (dims < sizes.head_dim)[None, :]
    pointers = output + heads[:, None] * sizes.head_dim + dims[None, :]
    tl.store(pointers, values.to(output.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["table_stride", "batch"], do_not_specialize_on_alignment=["block_tables", "resident_lengths"]
)
def _attend_kernel(
    query, query_stride, block_tables, table_stride, resident_lengths, batch, factor, key_cache, log_sum_exp,
    value_cache, output, output_stride, counters, part_log_sum_exp, part_output, sizes: tl.constexpr
):  # fmt: skip
    """One share of the tiles for each program: output, and log-sum-exp `[B, Hq]` to base 2."""
    heads = tl.arange(0, sizes.rows)
    ends, whole, share, place, last = _divide(resident_lengths, batch, sizes)
    _clear_empty_requests(resident_lengths, batch, output, output_stride, sizes)
    while place < last:
        request, head, length, first, end, head_places, places = _locate(
            place, last, ends, whole, resident_lengths, sizes
        )
        queries = load_rows(query + request * query_stride, head * sizes.group + heads, heads < sizes.group, sizes)
        table = block_tables + request * table_stride
        values, exponents = _attend_tiles(
            queries, key_cache, value_cache, table, head, first, end, length, factor, sizes
        )
        first_program = (place - first) // share
        num_parts = (place - first + head_places - 1) // share - first_program + 1
        is_complete = num_parts == 1
        if num_parts > 1:
            part = (2 * tl.program_id(0) + (first == 0).to(tl.int32)) * sizes.group
            _store_group(values, exponents, part_output + part * sizes.head_dim, part_log_sum_exp + part, sizes)
            # A part is written before it is counted, and who counts the last one sees them all.
            tl.debug_barrier()
            is_complete = tl.atomic_add(counters + first_program, 1, sem="acq_rel") == num_parts - 1
            if is_complete:
                tl.store(counters + first_program, 0)
                values, exponents = _combine_parts(part_log_sum_exp, part_output, first_program, num_parts, sizes)
        if is_complete:
            first_head = head * sizes.group
            exponents_out = log_sum_exp + request * sizes.num_kv_heads * sizes.group + first_head
            output_out = output + request * output_stride + first_head * sizes.head_dim
            _store_group(values, exponents, output_out, exponents_out, sizes)
        place += places


@triton.jit(
    do_not_specialize=["table_stride", "batch"], do_not_specialize_on_alignment=["block_tables", "resident_lengths"]
)
def _observe_kernel(
    query, query_stride, block_tables, table_stride, resident_lengths, batch, factor, key_cache, log_sum_exp,
    observed, sizes: tl.constexpr
):  # fmt: skip
    """One share of the tiles for each program: adds the group's largest probability of each entry to `observed`."""
    heads = tl.arange(0, sizes.rows)
    ends, whole, _, place, last = _divide(resident_lengths, batch, sizes)
    while place < last:
        request, head, length, first, end, _, places = _locate(place, last, ends, whole, resident_lengths, sizes)
        queries = load_rows(query + request * query_stride, head * sizes.group + heads, heads < sizes.group, sizes)
        exponents = log_sum_exp + (request * sizes.num_kv_heads + head) * sizes.group + heads
        exponents = tl.load(exponents, mask=heads < sizes.group, other=float("inf"))
        table = block_tables + request * table_stride
        blocks = tile_blocks(table, first * sizes.tile, length, sizes)
        for tile in range(first, end):
            rows = cache_rows(blocks, tile * sizes.tile, head, sizes)
            blocks = tile_blocks(table, (tile + 1) * sizes.tile, length, sizes)
            valid = tile * sizes.tile + tl.arange(0, sizes.tile) < length
            keys = load_rows(key_cache, rows, valid, sizes)
            logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * factor
            logits = tl.where(valid[None, :], logits, float("-inf"))
            probabilities = tl.max(tl.exp2(logits - exponents[:, None]), 0)
            # Requests may share a block.
            tl.atomic_add(observed + rows, probabilities, mask=valid, sem="relaxed")
        place += places
