"""Random numbers that depend on a seed and an index only, never on the batch, the device or a resumed request."""

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, index: int) -> float:
    """Number `index` of stream `seed`: uniform over the multiples of 2**-53 in [0, 1).

    The stream is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014)
    whose start is the mixed seed, so that the streams of neighbouring seeds have nothing in common.
    """
    start = _mix(seed + _GOLDEN_GAMMA)
    return (_mix(start + (index + 1) * _GOLDEN_GAMMA) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    """The finaliser of SplitMix64, a bijection of the integers modulo 2**64."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
