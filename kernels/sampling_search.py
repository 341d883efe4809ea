"""The kernel of `sampling` for rows whose candidates do not decide the draw: radix searches, without any sorting."""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from zipage.kernels.sampling_numbers import draw_target, least_mass, nucleus_mass, order_keys, token_masses


@triton.jit
def search_kernel(
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
    histograms,
    tokens,
    vocab_size: tl.constexpr,
    id_bits: tl.constexpr,
    digit_bits: tl.constexpr,
    tile_size: tl.constexpr,
):
    """Draw for the rows with a count above 0.

    Three searches: for the last token of top_k, for the last one of the nucleus, and for the drawn one. Each finds a
    likelier token than the one before, so it need not leave out what the others did.
    """
    row = tl.program_id(0).to(tl.int64)
    if tl.load(counts + row) > 0:
        row_logits = logits + row * stride
        histogram = histograms + (row << digit_bits)
        row_highest = tl.load(highest + row)
        temperature = tl.load(temperatures + row)
        row_top_k = tl.load(top_k + row)
        bound = tl.full([], 0, tl.int64)
        anything = tl.full([], 0, tl.int64)
        if row_top_k < vocab_size:
            bound = _find_key(
                row_logits, row_highest, temperature, anything, row_top_k, histogram,
                True, vocab_size, id_bits, digit_bits, tile_size,
            )  # fmt: skip
        total = _mass_from(row_logits, row_highest, temperature, bound, anything, vocab_size, id_bits, tile_size)
        needed = nucleus_mass(tl.load(top_p + row), total)
        if needed < total:
            bound = _find_key(
                row_logits, row_highest, temperature, anything, needed, histogram,
                False, vocab_size, id_bits, digit_bits, tile_size,
            )  # fmt: skip
        least = least_mass(tl.load(min_p + row))
        kept = _mass_from(row_logits, row_highest, temperature, bound, least, vocab_size, id_bits, tile_size)
        target = draw_target(tl.load(seeds + row), tl.load(token_indices + row), kept)
        # A row without any mass keeps the likeliest token.
        if target >= 0:
            drawn = _find_key(
                row_logits, row_highest, temperature, least, target + 1, histogram,
                False, vocab_size, id_bits, digit_bits, tile_size,
            )  # fmt: skip
            tl.store(tokens + row, vocab_size - 1 - (drawn & ((1 << id_bits) - 1)))


@triton.jit
def _load_tile(logits, start, vocab_size: tl.constexpr, id_bits: tl.constexpr, tile_size: tl.constexpr):
    """Logits `[tile_size]` from `start` on, and int64 keys in the order of likelihood, -1 past the end."""
    token_ids = start + tl.arange(0, tile_size)
    is_token = token_ids < vocab_size
    values = tl.load(logits + token_ids, mask=is_token, other=float("-inf")).to(tl.float32)
    order = order_keys(values).to(tl.int64) + 0x80000000
    return values, tl.where(is_token, (order << id_bits) | (vocab_size - 1 - token_ids), -1)


@triton.jit
def _mass_from(
    logits,
    highest,
    temperature,
    bound,
    least,
    vocab_size: tl.constexpr,
    id_bits: tl.constexpr,
    tile_size: tl.constexpr,
):
    """The mass of the tokens with a key of at least `bound` and a mass of at least `least`."""
    total = tl.zeros([tile_size], tl.int64)
    for start in range(0, vocab_size, tile_size):
        values, keys = _load_tile(logits, start, vocab_size, id_bits, tile_size)
        masses = token_masses(values, highest, temperature)
        total += tl.where((keys >= bound) & (masses >= least), masses, 0)
    return tl.sum(total)


@triton.jit
def _find_key(
    logits,
    highest,
    temperature,
    least,
    needed,
    histogram,
    by_count: tl.constexpr,
    vocab_size: tl.constexpr,
    id_bits: tl.constexpr,
    digit_bits: tl.constexpr,
    tile_size: tl.constexpr,
):
    """The largest key such that `_mass_from` this key, or the count of tokens from there on, is at least `needed`.

    The key is found from its highest digit down. For each digit the vocabulary is read once, and the tokens that share
    the digits found so far are added up by what their next digit is.
    """
    digits = tl.arange(0, 1 << digit_bits)
    last_digit: tl.constexpr = (1 << digit_bits) - 1
    num_digits: tl.constexpr = (32 + id_bits + digit_bits - 1) // digit_bits
    found = tl.full([], 0, tl.int64)
    before = tl.full([], 0, tl.int64)
    for position in range(num_digits):
        shift = (num_digits - 1 - position) * digit_bits
        tl.store(histogram + digits, tl.zeros([1 << digit_bits], tl.int64))
        tl.debug_barrier()
        for start in range(0, vocab_size, tile_size):
            values, keys = _load_tile(logits, start, vocab_size, id_bits, tile_size)
            shares_digits = (keys >> shift >> digit_bits) == found
            if tl.max(shares_digits.to(tl.int32)) > 0:
                weights = shares_digits.to(tl.int64)
                if not by_count:
                    masses = token_masses(values, highest, temperature)
                    weights = tl.where(shares_digits & (masses >= least), masses, 0)
                tl.atomic_add(histogram + ((keys >> shift) & last_digit), weights, mask=weights > 0, sem="relaxed")
        tl.debug_barrier()
        descending = tl.load(histogram + (last_digit - digits))
        is_passed = before + tl.cumsum(descending) < needed
        before += tl.sum(tl.where(is_passed, descending, 0))
        found = (found << digit_bits) | (last_digit - tl.sum(is_passed.to(tl.int64)))
        tl.debug_barrier()
    return found
