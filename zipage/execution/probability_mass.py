"""Unnormalised probabilities as integers.

The sum of floating-point numbers depends on the order in which they are added, and on a GPU that order changes with the
number of rows and their alignment. Integers have one sum, so whatever is decided from it (a normaliser, a nucleus, a
draw) is the same whichever rows are in the batch, and a token of probability zero cannot be drawn through rounding.
"""

import math

import torch
from torch import Tensor

_FLOAT32 = torch.finfo(torch.float32)

# Mass of the likeliest token. 2**22 tokens of this mass still add up to less than 2**63.
FULL_MASS = 1 << 40


def relative_logits(logits: Tensor) -> Tensor:
    """Logits relative to the highest of their row, so at most 0: [R, V] float32 to [R, V] float32.

    A row of nothing but -inf stays as it is.
    """
    return logits - logits.amax(dim=1, keepdim=True).clamp(min=_FLOAT32.min)


def probability_masses(log_ratios: Tensor) -> Tensor:
    """Masses [R, V] int64 of tokens whose log-probability is `log_ratios` ([R, V] float32) above the likeliest one's.

    Masses are rounded down, so tokens less likely than 2**-40 of the likeliest have none.
    """
    return log_ratios.exp().mul_(FULL_MASS).to(torch.int64)


def log_mass(masses: Tensor) -> Tensor:
    """Natural logarithm of masses, in units of the likeliest token's: int64 to float64 of the same shape."""
    return masses.to(torch.float64).log() - math.log(FULL_MASS)


def rank_tokens(logits: Tensor, count: int) -> Tensor:
    """The `count` tokens of highest logit, highest first, equal ones in the order of their ids.

    Args:
        logits: [R, V] float32.
        count: 1 to V.

    Returns:
        Token ids [R, count] int64.
    """
    vocab_size = logits.shape[1]
    # Adding 0 makes -0 equal to 0. A float's bits read as an integer are in the order of the floats, except that the
    # negative ones run backwards; their sign, shifted over all bits, turns them round. Below these bits, the reversed
    # id leaves no two keys equal, so there is only one order.
    bits = (logits + 0.0).view(torch.int32)
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)
    reversed_ids = torch.arange(vocab_size - 1, -1, -1, device=logits.device)
    keys = bits.to(torch.int64).bitwise_left_shift_(32).bitwise_or_(reversed_ids)
    return vocab_size - 1 - keys.topk(count, dim=1).values.bitwise_and_(0xFFFFFFFF)


def draw(masses: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one column of each row with probability proportional to its mass, by inversion of the cumulative sum.

    Args:
        masses: [R, C] int64, at least 0.
        uniforms: [R] float64 in [0, 1), one random number for each row.

    Returns:
        Columns [R] int64. A row without any mass gives column 0.
    """
    cumulative = masses.cumsum(dim=1)
    total = cumulative[:, -1]
    target = (uniforms * total).floor().to(torch.int64).minimum(total - 1)
    column = torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
    # Only masses made from NaN leave the range: a broken model must not take the process down with it.
    return column.clamp(max=masses.shape[1] - 1)
