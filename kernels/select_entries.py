"""Step 7 of the scoring: which entries survive, exactly and without a sort.

A float32 score becomes an unsigned integer of the same order. The smallest one that survives, the threshold, is found
bit by bit from the top: a bit stays set if at least `keep` entries reach what is set so far. Most searches end early,
when exactly `keep` do. Entries above their tier's turn count as the largest integer, those below as the smallest.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries whose keys one program keeps in registers during the search; of more it reads the scores again for every bit.
_SMALLEST_TILE, _LARGEST_TILE = 512, 16384
_ENTRIES_OF_WARP = 1024


def select_entries(
    final: Tensor,
    num_entries: Tensor,
    keep: Tensor,
    sinks: int,
    recent: Tensor,
    num_pinned: Tensor,
    kept: Tensor,
) -> None:
    """Select, for every layer and KV head, the entries that survive.

    The first `sinks` and the last `recent` entries come before the other `num_pinned` leading ones, those before the
    rest, within a tier the higher score, among equals the more recent entry: `select_entries` of the reference with
    the tiers of `entry_tiers`.

    Args:
        final: `[R, L, Hkv, n_max]` float32, without NaN.
        num_entries: `[R]` integers, n of each request.
        keep: `[R]` integers, at most n; nothing is done where it is 0.
        sinks: leading entries that are always kept.
        recent: `[R]` integers, last entries that are always kept.
        num_pinned: `[R]` integers, leading entries that are pinned.
        kept: `[R, L, Hkv, keep_max]` int32, the first `keep` places are written, ascending.

    Raises:
        ValueError: shapes, dtypes or strides that do not belong together, or negative `sinks`.
    """
    for name, tensor, dtype in (("final", final, torch.float32), ("kept", kept, torch.int32)):
        if tensor.shape[:3] != final.shape[:3] or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be {[*final.shape[:3]]} and one more dimension, {dtype}, contiguous, not "
                f"{list(tensor.shape)} {tensor.dtype}"
            )
    if sinks < 0:
        raise ValueError(f"sinks must be at least 0, not {sinks}")
    num_requests, num_layers, num_kv_heads, max_entries = final.shape
    rows_per_request = num_layers * num_kv_heads
    tile = min(max(triton.next_power_of_2(max_entries), _SMALLEST_TILE), _LARGEST_TILE)
    _select_entries_kernel[(num_requests * rows_per_request,)](
        final,
        max_entries,
        rows_per_request,
        num_entries,
        keep,
        sinks,
        recent,
        num_pinned,
        kept,
        kept.shape[3],
        tile,
        is_one_tile=max_entries <= tile,
        num_warps=max(tile // _ENTRIES_OF_WARP, 1),
    )


@triton.jit
def _load_keys(scores, first, length, first_rest, pinned, last_rest, turn, tile: tl.constexpr):
    """Unsigned keys of the entries from `first` on: of no entry the smallest, which only NaN shares."""
    entries = first + tl.arange(0, tile)
    inside = entries < length
    score = tl.load(scores + entries, mask=inside, other=0.0)
    bits = score.to(tl.int32, bitcast=True)
    # The two zeros are equal.
    bits = tl.where(bits == -2147483648, 0, bits)
    ordered = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
    tier = tl.where((entries < first_rest) | (entries >= last_rest), 2, tl.where(entries < pinned, 1, 0))
    keys = tl.where(tier > turn, 0xFFFFFFFF, tl.where(tier == turn, ordered, 0))
    return tl.where(inside, keys, 0)


@triton.jit
def _count_reaching(candidate, scores, length, first_rest, pinned, last_rest, turn, tile: tl.constexpr):
    count = 0
    for first in range(0, length, tile):
        keys = _load_keys(scores, first, length, first_rest, pinned, last_rest, turn, tile)
        count += tl.sum((keys >= candidate).to(tl.int32))
    return count


# Whether `max_entries` is a multiple of 16 makes two kernels: where it is, a thread holds neighbours, and the scan is
# short.
@triton.jit(
    do_not_specialize=["rows_per_request", "sinks", "max_kept"],
    do_not_specialize_on_alignment=["num_entries", "keep", "recent", "num_pinned"],
)
def _select_entries_kernel(
    final, max_entries, rows_per_request, num_entries, keep, sinks, recent, num_pinned, kept, max_kept,
    tile: tl.constexpr, is_one_tile: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    request = row // rows_per_request
    length = tl.load(num_entries + request).to(tl.int32)
    wanted = tl.load(keep + request).to(tl.int32)
    if wanted == 0:
        return
    scores = final + row * max_entries
    # Always kept are [0, first_rest) and [last_rest, length), pinned [first_rest, pinned), the rest is between them.
    first_rest = tl.minimum(sinks, length)
    last_rest = tl.maximum(length - tl.load(recent + request).to(tl.int32), first_rest)
    pinned = tl.minimum(tl.maximum(tl.load(num_pinned + request).to(tl.int32), first_rest), last_rest)
    always_kept = first_rest + length - last_rest
    # The tier of which some entries may survive and some not.
    turn = tl.where(wanted <= always_kept, 2, tl.where(wanted <= always_kept + pinned - first_rest, 1, 0))
    if is_one_tile:
        keys = _load_keys(scores, 0, length, first_rest, pinned, last_rest, turn, tile)
    threshold = tl.full((), 0, tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    reaching = length
    while (bit != 0) & (reaching != wanted):
        candidate = threshold | bit
        if is_one_tile:
            count = tl.sum((keys >= candidate).to(tl.int32))
        else:
            count = _count_reaching(candidate, scores, length, first_rest, pinned, last_rest, turn, tile)
        threshold = tl.where(count >= wanted, candidate, threshold)
        reaching = tl.where(count >= wanted, count, reaching)
        bit = bit >> 1
    # So many entries exactly at the threshold do not survive: the oldest.
    surplus = reaching - wanted
    above_before = 0
    equal_before = 0
    for first in range(0, length, tile):
        entries = first + tl.arange(0, tile)
        if not is_one_tile:
            keys = _load_keys(scores, first, length, first_rest, pinned, last_rest, turn, tile)
        above = (entries < length) & (keys > threshold)
        equal = (entries < length) & (keys == threshold)
        # Both counts in one scan; a tile has less than 2 ** 15 entries.
        flags = above.to(tl.int32) + (equal.to(tl.int32) << 16)
        before = tl.cumsum(flags, 0) - flags
        num_equal = equal_before + (before >> 16)
        survives = above | (equal & (num_equal >= surplus))
        place = above_before + (before & 0xFFFF) + tl.maximum(num_equal - surplus, 0)
        tl.store(kept + row * max_kept + place, entries, mask=survives)
        total = tl.sum(flags)
        above_before += total & 0xFFFF
        equal_before += total >> 16
