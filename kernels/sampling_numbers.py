"""What the sampling kernels compute with: integer masses, keys in the order of likelihood, random numbers, draws.

Device functions only. They are the formulas of `zipage.execution.probability_mass` and `random_numbers`: exactly the
same integers, given the same `exp`. That of CUDA's library is what PyTorch's `exp` runs on a GPU; Triton's own is a
coarser one. The interpreter knows no CUDA library and takes NumPy's, whose last bit PyTorch's CPU code need not share.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def token_masses(logits, highest, temperature):
    """Masses int64 of float32 logits: 2**40 for the row's `highest`, 0 below 2**-40 of it, for NaN, and for -inf."""
    exponents = tl.div_rn(logits - highest, temperature)
    ratios = tl.exp(exponents) if _INTERPRETED else libdevice.exp(exponents)
    # Where the highest is -inf too, the ratio is NaN.
    return (tl.where(ratios > 0, ratios, 0.0) * 1099511627776.0).to(tl.int64)


@triton.jit
def order_keys(logits):
    """Keys int32 in the order of float32 logits, with -0 equal to 0."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def rank_keys(logits, token_ids, vocab_size: tl.constexpr):
    """Keys int64, none twice, in the order of likelihood: the higher logit, of equals the lower token id."""
    return (order_keys(logits).to(tl.int64) << 32) | (vocab_size - 1 - token_ids).to(tl.int64)


@triton.jit
def ranked_logits(keys):
    """The logits float32 that `rank_keys` was given."""
    order = (keys >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def ranked_token_ids(keys, vocab_size: tl.constexpr):
    """The token ids int64 that `rank_keys` was given."""
    return vocab_size - 1 - (keys & 0xFFFFFFFF)


@triton.jit
def least_mass(min_p):
    """The least mass that min_p (float64) leaves in place."""
    return tl.ceil(min_p * 1099511627776.0).to(tl.int64)


@triton.jit
def nucleus_mass(top_p, total):
    """The mass that the likeliest tokens have to reach together under top_p (float64)."""
    return tl.ceil(top_p * total.to(tl.float64)).to(tl.int64)


@triton.jit
def draw_target(seed, token_index, total):
    """The drawn token is the first whose cumulative mass is greater than this: -1 for a total of 0."""
    return tl.minimum(tl.floor(_uniform(seed, token_index) * total.to(tl.float64)).to(tl.int64), total - 1)


@triton.jit
def _uniform(seed, token_index):
    """Number `token_index` of SplitMix64's stream `seed` (both int64), float64 in [0, 1)."""
    start = _mix(seed.to(tl.uint64) + 0x9E3779B97F4A7C15)
    mixed = _mix(start + (token_index.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15)
    return (mixed >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _mix(value):
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)


@triton.jit
def sort_descending(keys, log_size: tl.constexpr):
    """Sort `[2 ** log_size]` int64 keys: Batcher's bitonic network."""
    for stage in tl.static_range(log_size):
        for step in tl.static_range(stage + 1):
            keys = _compare_pairs(keys, stage - step, step, log_size)
    return keys


@triton.jit
def _compare_pairs(keys, log_distance: tl.constexpr, step: tl.constexpr, log_size: tl.constexpr):
    """One step of the network, on keys `2 ** log_distance` apart.

    A key's partner is the sum of both minus itself: a reduction that the interpreter computes fast, unlike `tl.sort`'s.
    """
    groups: tl.constexpr = 1 << (log_size - log_distance - 1)
    pairs = tl.reshape(keys, [groups, 2, 1 << log_distance])
    partners = tl.sum(pairs, axis=1, keep_dims=True) - pairs
    is_first = tl.arange(0, 2)[None, :, None] == 0
    is_descending = ((tl.arange(0, groups) >> step) & 1)[:, None, None] == 0
    swap = (partners > pairs) == (is_first == is_descending)
    return tl.reshape(tl.where(swap, partners, pairs), [1 << log_size])
