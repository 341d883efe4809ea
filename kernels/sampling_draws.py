"""The kernel of `sampling` that draws, one program for each row."""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from zipage.kernels.sampling_numbers import (
    draw_target,
    least_mass,
    nucleus_mass,
    ranked_logits,
    ranked_token_ids,
    sort_descending,
    token_masses,
)


@triton.jit
def draw_kernel(
    logits,
    stride,
    highest,
    temperatures,
    top_k,
    top_p,
    min_p,
    seeds,
    token_indices,
    counts,
    candidates,
    masses,
    tokens,
    vocab_size: tl.constexpr,
    log_few: tl.constexpr,
    log_capacity: tl.constexpr,
    num_stretches: tl.constexpr,
    max_stretches: tl.constexpr,
    stretch_size: tl.constexpr,
    tile_size: tl.constexpr,
):
    """Draw for every row whose masses and candidates decide the draw. Those with candidates get a count of 0."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        row_highest = tl.load(highest + row)
        row_top_k = tl.load(top_k + row)
        row_top_p = tl.load(top_p + row)
        least = least_mass(tl.load(min_p + row))
        seed = tl.load(seeds + row)
        token_index = tl.load(token_indices + row)
        stretches = tl.arange(0, max_stretches)
        stretch_masses = tl.load(masses + row * num_stretches + stretches, mask=stretches < num_stretches, other=0)
        total = tl.sum(stretch_masses)
        token = tl.full([], -1, tl.int64)
        if (row_top_k < vocab_size) | (row_top_p < 1):
            keys = candidates + (row << log_capacity)
            count = tl.load(counts + row)
            if count <= 1 << log_few:
                token = _draw_by_rank(
                    keys, count, row_highest, temperature, row_top_k, row_top_p, least, seed, token_index, total,
                    vocab_size, log_few,
                )  # fmt: skip
            elif count <= 1 << log_capacity:
                token = _draw_by_rank(
                    keys, count, row_highest, temperature, row_top_k, row_top_p, least, seed, token_index, total,
                    vocab_size, log_capacity,
                )  # fmt: skip
            if token >= 0:
                tl.store(counts + row, 0)
        else:
            target = draw_target(seed, token_index, total)
            # A row without any mass keeps the likeliest token.
            if target >= 0:
                token = _draw_by_id(
                    logits + row * stride, row_highest, temperature, least, stretch_masses, target,
                    vocab_size, stretch_size, tile_size,
                )  # fmt: skip
        if token >= 0:
            tl.store(tokens + row, token)


@triton.jit
def _draw_by_id(
    logits,
    highest,
    temperature,
    least,
    stretch_masses,
    target,
    vocab_size: tl.constexpr,
    stretch_size: tl.constexpr,
    tile_size: tl.constexpr,
):
    """The first token whose cumulative mass is greater than `target`, which is less than the mass of all stretches."""
    is_passed = tl.cumsum(stretch_masses) <= target
    before = tl.sum(tl.where(is_passed, stretch_masses, 0))
    start = tl.sum(is_passed.to(tl.int32)) * stretch_size
    masses = _tile_masses(logits, start, highest, temperature, least, vocab_size, tile_size)
    after = before + tl.sum(masses)
    while after <= target:
        before = after
        start += tile_size
        masses = _tile_masses(logits, start, highest, temperature, least, vocab_size, tile_size)
        after = before + tl.sum(masses)
    num_passed = tl.sum((before + tl.cumsum(masses) <= target).to(tl.int32))
    return (start + num_passed).to(tl.int64)


@triton.jit
def _tile_masses(logits, start, highest, temperature, least, vocab_size: tl.constexpr, tile_size: tl.constexpr):
    """Masses `[tile_size]` of the tokens from `start` on, 0 for those under `least`."""
    token_ids = start + tl.arange(0, tile_size)
    values = tl.load(logits + token_ids, mask=token_ids < vocab_size, other=float("-inf")).to(tl.float32)
    masses = token_masses(values, highest, temperature)
    return tl.where(masses >= least, masses, 0)


@triton.jit
def _draw_by_rank(
    candidates,
    count,
    highest,
    temperature,
    top_k,
    top_p,
    least,
    seed,
    token_index,
    total,
    vocab_size: tl.constexpr,
    log_size: tl.constexpr,
):
    """Draw from the `count` likeliest tokens; -1 where they do not decide the draw.

    `total` is the mass of the vocabulary, which is not used under top_k.
    """
    ranks = tl.arange(0, 1 << log_size)
    lowest = tl.full([], -0x8000000000000000, tl.int64)
    keys = sort_descending(tl.load(candidates + ranks, mask=ranks < count, other=lowest), log_size)
    masses = token_masses(ranked_logits(keys), highest, temperature)
    masses = tl.where((ranks < count) & (ranks < top_k), masses, 0)
    ranked_total = tl.sum(masses)
    has_top_k = top_k < vocab_size
    needed = nucleus_mass(top_p, tl.where(has_top_k, ranked_total, total))
    is_kept = (tl.cumsum(masses) - masses < needed) & (masses >= least)
    masses = tl.where(is_kept, masses, 0)
    target = draw_target(seed, token_index, tl.sum(masses))
    rank = tl.sum((tl.cumsum(masses) <= target).to(tl.int32))
    drawn = tl.max(tl.where(ranks == rank, keys, lowest))
    reaches = tl.where(has_top_k, count >= top_k, (ranked_total >= needed) | (count == vocab_size))
    return tl.where(reaches, ranked_token_ids(drawn, vocab_size), -1)
