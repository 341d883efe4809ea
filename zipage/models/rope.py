"""Rotary position embedding: the table of cosines and sines, and its use on a batch of heads."""

import math

import torch

from zipage.models.rope_config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling


def inverse_frequencies(rope: RopeConfig, head_dim: int, device: torch.device) -> torch.Tensor:
    """Radians per position of every pair of dimensions, scaled.

    Returns:
        [head_dim / 2] float32, `theta ** (-2 i / head_dim)` before scaling.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case LinearScaling(factor=factor):
            return frequencies / factor
        case Llama3Scaling():
            return _llama3_frequencies(frequencies, rope.scaling)
        case YarnScaling():
            return _yarn_frequencies(frequencies, rope.scaling, rope.theta, head_dim)
    return frequencies


def rotary_table(
    rope: RopeConfig, head_dim: int, num_positions: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """What `rotate` needs of positions 0 to `num_positions - 1`, computed in float32 and rounded once to `dtype`.

    Returns:
        [num_positions, 2 * head_dim] in `dtype`: the cosines of both halves of a head, then the sines, those of the
        first half negated; YaRN's attention factor is multiplied in.
    """
    positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    angles = torch.outer(positions, inverse_frequencies(rope, head_dim, device))
    scale = rope.scaling.attention_factor if isinstance(rope.scaling, YarnScaling) else 1.0
    half = head_dim // 2
    table = torch.empty(num_positions, 4, half, dtype=dtype, device=device)
    table[:, :2] = (angles.cos() * scale)[:, None]
    sines = angles.sin() * scale
    table[:, 2] = -sines
    table[:, 3] = sines
    return table.view(num_positions, 2 * head_dim)


def rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate dimension `i` of each head with dimension `i + d / 2`, as checkpoints of the three families are stored.

    Args:
        heads: [T, H, d].
        cosines: [T, 1, d] of the same dtype, the first half of a `rotary_table` row.
        sines: [T, 1, d] of the same dtype, the second half.

    Returns:
        [T, H, d], contiguous.
    """
    swapped = torch.roll(heads, heads.shape[-1] // 2, dims=-1)
    return torch.addcmul(heads * cosines, swapped, sines)


def _llama3_frequencies(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    turns = frequencies * scaling.original_max_position_embeddings / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn_frequencies(frequencies: torch.Tensor, scaling: YarnScaling, theta: float, head_dim: int) -> torch.Tensor:
    low = _yarn_dimension(scaling.beta_fast, scaling, theta, head_dim)
    high = _yarn_dimension(scaling.beta_slow, scaling, theta, head_dim)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero; the width is transformers'
    dimensions = torch.arange(head_dim // 2, dtype=torch.float32, device=frequencies.device)
    interpolated = ((dimensions - low) / (high - low)).clamp(0, 1)
    return interpolated * frequencies / scaling.factor + (1 - interpolated) * frequencies


def _yarn_dimension(num_turns: float, scaling: YarnScaling, theta: float, head_dim: int) -> float:
    """The pair of dimensions, as a real number, that turns `num_turns` times within the original context."""
    wavelength = scaling.original_max_position_embeddings / num_turns
    return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))
