"""Confidence intervals of shares and of their ratios, and pass@k."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
Z = 1.959963984540054
"""The 0.975 quantile of the normal distribution."""

RESAMPLINGS = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def wilson(right: float, count: float, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Args:
        right: of `count`, 0 to `count`; need not be whole.
        count: more than 0.
        z: quantile of the normal distribution.
    """
    center = right + z * z / 2
    half = z * math.sqrt(z * z / 4 + right * (1 - right / count))
    return max(0.0, (center - half) / (count + z * z)), min(1.0, (center + half) / (count + z * z))


def share(right: Sequence[bool]) -> Estimate:
    """The share of what is true, with Wilson's interval; `right` is not empty."""
    return Estimate(sum(right) / len(right), *wilson(sum(right), len(right)))


def paired_ratio(right: Sequence[bool], reference: Sequence[bool]) -> Estimate | None:
    """`share(right) / share(reference)` of the same prompts, with the interval of Bonett and Price.

    Bonett and Price, "Confidence intervals for a ratio of binomial proportions based on paired data", Statistics in
    Medicine 25 (2006): the ends are quotients of Wilson intervals, narrower by a factor that pairing earns. It is an
    interval of more than one point also where all answers are right. `None` where no reference answer is right.
    """
    n_right, n_reference = sum(right), sum(reference)
    if not n_reference:
        return None
    differ = sum(mine != other for mine, other in zip(right, reference, strict=True))
    # Prompts that both get wrong say nothing about the ratio.
    informative = (n_right + n_reference + differ) // 2
    whole = math.sqrt((differ + 2) / ((n_right + 1) * (n_reference + 1)))
    parts = sum(math.sqrt((1 - (x + 1) / (informative + 2)) / (x + 1)) for x in (n_right, n_reference))
    low, high = wilson(n_right, informative, Z * whole / parts)
    low_reference, high_reference = wilson(n_reference, informative, Z * whole / parts)
    return Estimate(n_right / n_reference, low / high_reference, high / low_reference)


def clustered_share(means: Sequence[float], samples: int) -> Estimate:
    """The mean of shares, each of `samples` answers to one problem, with an interval that is clustered by problem.

    Wilson's interval with the effective number of answers `p (1 - p) / var`, where `var` is the variance of the mean
    over problems: from one answer for each problem (all its samples agree) to all answers (as if each had a problem of
    its own). Where all shares are 0, or all are 1, that number is the number of problems.
    """
    value, problems = float(np.mean(means)), len(means)
    spread = value * (1 - value)
    variance = float(np.var(means)) / problems
    effective = float(problems)
    if spread > 0:
        effective = problems * samples if variance == 0 else min(spread / variance, problems * samples)
    return Estimate(value, *wilson(value * effective, effective))


def resampled_ratio(values: Sequence[float], reference: Sequence[float], seed: int = 0) -> Estimate | None:
    """`mean(values) / mean(reference)` of the same problems, with the percentiles of a bootstrap over problems.

    `None` where the reference is 0, also in so many of the resampled sets that its interval has no end.
    """
    pairs = np.stack([np.asarray(values, dtype=float), np.asarray(reference, dtype=float)])
    if not pairs[1].any():
        return None
    problems = pairs.shape[1]
    drawn = np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLINGS)
    mine, other = pairs @ drawn.T
    ratios = np.sort(np.divide(mine, other, out=np.full_like(mine, np.inf), where=other > 0))
    low, high = (float(ratios[round(quantile * (RESAMPLINGS - 1))]) for quantile in (0.025, 0.975))
    return Estimate(float(pairs[0].mean() / pairs[1].mean()), low, high) if math.isfinite(high) else None


def pass_at_k(right: int, samples: int, k: int) -> float:
    """The chance that `k` answers have a right one, unbiased, from `right` of `samples` answers; k <= samples."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)
