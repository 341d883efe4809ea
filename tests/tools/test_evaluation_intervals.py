"""Confidence intervals and pass@k against published and hand-computed values."""

import itertools
import math

import pytest

from tools.evaluation.intervals import clustered_share, paired_ratio, pass_at_k, resampled_ratio, share, wilson


def flags(both: int, mine: int, other: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Right answers of two runs, from the four counts."""
    right = [True] * (both + mine) + [False] * (other + neither)
    return right, [True] * both + [False] * mine + [True] * other + [False] * neither


@pytest.mark.parametrize(
    "right, count, low, high",
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)


def test_share_has_its_wilson_interval() -> None:
    estimate = share([True] * 8 + [False] * 2)
    assert (estimate.value, estimate.low, estimate.high) == (0.8, *wilson(8, 10))


def test_paired_ratio_of_a_published_table() -> None:
    """Airway hyper-responsiveness before and after stem cell transplantation (Bentur et al., 2009)."""
    estimate = paired_ratio(*flags(both=1, mine=1, other=7, neither=12))
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.25, 0.0677, 0.9227), abs=5e-5)


def test_paired_ratio_ignores_what_both_get_wrong() -> None:
    assert paired_ratio(*flags(20, 1, 3, 0)) == paired_ratio(*flags(20, 1, 3, 500))


def test_paired_ratio_where_all_are_right_is_not_a_point() -> None:
    estimate = paired_ratio([True] * 256, [True] * 256)
    assert estimate is not None
    assert estimate.value == 1.0
    assert 0.99 < estimate.low < 1.0 < estimate.high < 1.01


def test_paired_ratio_needs_a_right_reference() -> None:
    assert paired_ratio([True, False], [False, False]) is None
    estimate = paired_ratio([False, False], [True, True])
    assert estimate is not None
    assert (estimate.value, estimate.low) == (0.0, 0.0)


def test_clustered_share_of_one_sample_is_wilsons() -> None:
    estimate = clustered_share([1.0] * 8 + [0.0] * 2, samples=1)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(8, 10))


def test_clustered_share_lies_between_one_answer_for_each_problem_and_all_answers() -> None:
    agreeing = clustered_share([1.0] * 8 + [0.0] * 2, samples=4)
    mixed = clustered_share([1.0, 0.75, 0.75, 0.5, 1.0, 0.5, 1.0, 1.0, 0.5, 1.0], samples=4)
    even = clustered_share([0.75] * 10, samples=4)
    assert (agreeing.low, agreeing.high) == pytest.approx(wilson(8, 10))
    assert (even.low, even.high) == pytest.approx(wilson(30, 40))
    assert even.high - even.low <= mixed.high - mixed.low < agreeing.high - agreeing.low
    nothing = clustered_share([0.0] * 10, samples=4)
    assert (nothing.low, nothing.high) == pytest.approx(wilson(0, 10))


def test_resampled_ratio_is_paired_and_repeatable() -> None:
    reference = [1.0, 0.5, 0.25, 1.0, 0.0, 0.75] * 5
    half = resampled_ratio([value / 2 for value in reference], reference)
    assert half is not None
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    mine = [1.0, 0.25, 0.5, 0.75, 0.0, 0.5] * 5
    assert resampled_ratio(mine, reference) == resampled_ratio(mine, reference)
    assert resampled_ratio([1.0, 1.0], [0.0, 0.0]) is None
    assert resampled_ratio([1.0, 1.0, 1.0], [0.0, 0.0, 1.0]) is None


@pytest.mark.parametrize("right, samples, k", [(0, 4, 2), (1, 4, 1), (2, 5, 3), (4, 4, 2), (1, 1, 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(right: int, samples: int, k: int) -> None:
    answers = [index < right for index in range(samples)]
    subsets = list(itertools.combinations(answers, k))
    assert pass_at_k(right, samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert math.comb(samples, k) == len(subsets)
