"""The kernels of `sampling` that read the whole vocabulary: its maxima, its masses, and the candidates for a draw."""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from zipage.kernels.sampling_numbers import least_mass, order_keys, rank_keys, token_masses


@triton.jit
def maxima_kernel(
    logits,
    maxima,
    maxima_ids,
    stride,
    vocab_size: tl.constexpr,
    num_groups: tl.constexpr,
    program_groups: tl.constexpr,
    tile_size: tl.constexpr,
):
    """The largest logit of each group and its token id; group g are the tokens g, g + num_groups and so on."""
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * program_groups + tl.arange(0, program_groups)
    members = tl.arange(0, tile_size)
    highest = tl.full([program_groups], float("-inf"), tl.float32)
    highest_ids = groups
    for start in range(0, vocab_size, tile_size * num_groups):
        token_ids = start + members[:, None] * num_groups + groups
        values = tl.load(logits + row * stride + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
        values = values.to(tl.float32)
        values = tl.where(values == values, values, float("-inf"))
        tile_highest, member = tl.max(values, axis=0, return_indices=True)
        # Only a higher logit replaces one of a lower id.
        is_higher = tile_highest > highest
        highest = tl.where(is_higher, tile_highest, highest)
        highest_ids = tl.where(is_higher, start + member * num_groups + groups, highest_ids)
    tl.store(maxima + row * num_groups + groups, highest)
    tl.store(maxima_ids + row * num_groups + groups, highest_ids)


@triton.jit
def likeliest_kernel(maxima, maxima_ids, tokens, num_groups: tl.constexpr):
    """The likeliest token, for a greedy batch."""
    row = tl.program_id(0)
    groups = row * num_groups + tl.arange(0, num_groups)
    values = tl.load(maxima + groups)
    tl.store(tokens + row, _likeliest(values, tl.max(values), tl.load(maxima_ids + groups)))


@triton.jit
def _likeliest(values, highest, token_ids):
    """The lowest id of those with the highest value, int64."""
    return tl.min(tl.where(values == highest, token_ids, 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def bound_kernel(
    maxima,
    maxima_ids,
    top_k,
    tokens,
    highest,
    bounds,
    counts,
    num_groups: tl.constexpr,
    max_ranked: tl.constexpr,
):
    """The likeliest token, and the largest key that as many maxima reach as tokens have to be ranked."""
    row = tl.program_id(0)
    groups = row * num_groups + tl.arange(0, num_groups)
    values = tl.load(maxima + groups)
    row_highest = tl.max(values)
    num_ranked = tl.minimum(tl.load(top_k + row), max_ranked)
    keys = order_keys(values)
    # The key's bits one by one, the sign first.
    bound = tl.where(_count(keys >= 0) >= num_ranked, 0, -0x80000000).to(tl.int32)
    for position in range(31):
        higher = bound + (1 << (30 - position))
        bound = tl.where(_count(keys >= higher) >= num_ranked, higher, bound)
    tl.store(tokens + row, _likeliest(values, row_highest, tl.load(maxima_ids + groups)))
    tl.store(highest + row, row_highest)
    tl.store(bounds + row, bound)
    tl.store(counts + row, 0)


@triton.jit
def _count(condition):
    return tl.sum(condition.to(tl.int32))


@triton.jit
def weigh_kernel(
    logits,
    stride,
    highest,
    temperatures,
    top_k,
    top_p,
    min_p,
    bounds,
    counts,
    candidates,
    masses,
    vocab_size: tl.constexpr,
    log_capacity: tl.constexpr,
    stretch_size: tl.constexpr,
    tile_size: tl.constexpr,
):
    """The mass of a stretch of the vocabulary, and its candidates; `counts` may pass the capacity."""
    row = tl.program_id(0).to(tl.int64)
    stretch = tl.program_id(1)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        row_highest = tl.load(highest + row)
        bound = tl.load(bounds + row)
        has_top_k = tl.load(top_k + row) < vocab_size
        is_ranked = has_top_k | (tl.load(top_p + row) < 1)
        # The nucleus counts what min_p drops, a draw in the order of ids does not.
        least = tl.where(is_ranked, 0, least_mass(tl.load(min_p + row)))
        total = tl.zeros([tile_size], tl.int64)
        numbers = tl.zeros([tile_size], tl.int32)
        for start in range(0, stretch_size, tile_size):
            token_ids = stretch * stretch_size + start + tl.arange(0, tile_size)
            is_token = token_ids < vocab_size
            values = tl.load(logits + row * stride + token_ids, mask=is_token, other=float("-inf")).to(tl.float32)
            if is_ranked:
                numbers += ((order_keys(values) >= bound) & is_token).to(tl.int32)
            # Under top_k the masses of the candidates are enough.
            if not has_top_k:
                tile_masses = token_masses(values, row_highest, temperature)
                total += tl.where(tile_masses >= least, tile_masses, 0)
        tl.store(masses + row * tl.num_programs(1) + stretch, tl.sum(total))
        number = tl.sum(numbers)
        if number > 0:
            # Their order makes no difference: all places are known before the first one is written.
            places = tl.atomic_add(counts + row, number) + tl.cumsum(numbers) - numbers
            for start in range(0, stretch_size, tile_size):
                token_ids = stretch * stretch_size + start + tl.arange(0, tile_size)
                is_token = token_ids < vocab_size
                values = tl.load(logits + row * stride + token_ids, mask=is_token, other=float("-inf")).to(tl.float32)
                is_candidate = (order_keys(values) >= bound) & is_token
                is_stored = is_candidate & (places < 1 << log_capacity)
                keys = rank_keys(values, token_ids, vocab_size)
                tl.store(candidates + (row << log_capacity) + places, keys, mask=is_stored)
                places += is_candidate.to(tl.int32)
