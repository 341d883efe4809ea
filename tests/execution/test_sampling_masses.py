"""Integer probability masses, ranking and drawing."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import likeliest_first, softmax

from zipage.execution.probability_mass import (
    FULL_MASS,
    draw,
    log_mass,
    probability_masses,
    rank_tokens,
    relative_logits,
)

ALMOST_ONE = 1 - 2.0**-53


def draw_slowly(masses, number):
    target, passed = Fraction(number) * sum(masses), 0
    for column, mass in enumerate(masses):
        passed += mass
        if passed > target:
            return column
    return 0


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    st.one_of(st.floats(0, 1, exclude_max=True), st.just(ALMOST_ONE)),
)
def test_draw_inverts_the_cumulative_sum(masses, number):
    column = draw(torch.tensor([masses]), torch.tensor([number], dtype=torch.float64)).item()
    rounds_over_a_step = math.floor(number * sum(masses)) != math.floor(Fraction(number) * sum(masses))
    if not rounds_over_a_step:
        assert column == draw_slowly(masses, number)
    assert masses[column] > 0 or sum(masses) == 0


@pytest.mark.parametrize("number", [0.0, 0.3, ALMOST_ONE])
def test_no_draw_of_an_impossible_token_in_a_huge_total(number):
    masses = torch.zeros(1, 200_000, dtype=torch.int64)
    masses[0, 100:150_000] = FULL_MASS
    column = draw(masses, torch.tensor([number], dtype=torch.float64)).item()
    assert 100 <= column < 150_000
    assert column == pytest.approx(100 + number * 149_900, abs=1)


def test_draw_from_nothing_gives_the_first_column():
    assert draw(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([0.9], dtype=torch.float64)).tolist() == [0]


def test_masses_are_probabilities_up_to_a_factor():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 4
    masses = probability_masses(relative_logits(logits)).tolist()
    for row, expected in zip(masses, logits.tolist(), strict=True):
        assert max(row) == FULL_MASS
        assert [mass / sum(row) for mass in row] == pytest.approx(softmax(expected), rel=1e-6, abs=1e-12)


def test_log_mass_undoes_the_unit():
    assert log_mass(torch.tensor([FULL_MASS, 3 * FULL_MASS])).tolist() == pytest.approx([0.0, math.log(3)], abs=1e-12)


def test_a_row_of_minus_infinity_has_no_mass():
    logits = torch.tensor([[-math.inf, -math.inf], [-math.inf, 2.0]])
    assert probability_masses(relative_logits(logits)).tolist() == [[0, 0], [0, FULL_MASS]]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, -math.inf]), st.floats(width=32, allow_nan=False)), min_size=1
    ),
    st.data(),
)
def test_rank_is_by_logit_then_by_id(logits, data):
    count = data.draw(st.integers(1, len(logits)))
    ranked = rank_tokens(torch.tensor([logits], dtype=torch.float32), count)
    assert ranked.tolist() == [likeliest_first(logits)[:count]]
