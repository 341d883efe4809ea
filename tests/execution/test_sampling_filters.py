"""Temperature, top_k, top_p and min_p: which tokens stay and how likely each is."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampling_cases import (
    likeliest_first,
    make_state,
    measured_distribution,
    reference_distribution,
    state_with_uniform,
)
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from zipage.execution.sampling import sample

STEPS = 512
RESOLUTION = 1 / STEPS + 1e-6


def random_logits(vocab_size, seed, scale=2.0):
    return (torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * scale).tolist()


def assert_distribution(measured, expected):
    assert measured == pytest.approx(expected, abs=RESOLUTION)
    assert all(expected[token_id] > 0 for token_id, share in enumerate(measured) if share)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-24, 24).map(lambda i: i / 8), min_size=1, max_size=12),
    temperature=st.sampled_from([0.25, 0.7, 1.0, 1.5]),
    top_k=st.integers(0, 14),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.99)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
)
def test_filters_against_one_token_at_a_time(logits, temperature, top_k, top_p, min_p):
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    expected, margin = reference_distribution(logits, **options)
    assume(margin > 1e-5)
    assert_distribution(measured_distribution(logits, STEPS, **options), expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 0.6, "top_k": 10, "top_p": 0.9},
        {"temperature": 1.7, "top_k": 12, "top_p": 0.7, "min_p": 0.3},
    ],
    ids=str,
)
def test_filters_are_those_of_transformers(options, seed):
    logits = random_logits(24, seed)
    warpers = [
        TemperatureLogitsWarper(options.get("temperature", 1.0)),
        TopKLogitsWarper(options.get("top_k", 24)),
        TopPLogitsWarper(options.get("top_p", 1.0)),
        MinPLogitsWarper(options.get("min_p", 0.0)),
    ]
    scores = torch.tensor([logits])
    for warper in warpers:
        scores = warper(None, scores)
    assert_distribution(measured_distribution(logits, STEPS, **options), scores.softmax(dim=1)[0].tolist())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 4}, {0, 1, 2, 3}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {0, 1}),
        ({"top_p": 0.51}, {0, 1, 2}),
        ({"top_p": 1e-9}, {0}),
        ({"top_k": 2, "top_p": 0.5}, {0}),
        ({"min_p": 1.0}, {0, 1, 2, 3}),
        ({"top_k": 3, "min_p": 1.0}, {0, 1, 2}),
    ],
    ids=str,
)
def test_equal_tokens_are_cut_off_from_the_highest_id_down(options, expected):
    measured = measured_distribution([1.0] * 4, STEPS, **options)
    assert {token_id for token_id, share in enumerate(measured) if share} == expected


def test_top_p_counts_the_tokens_that_min_p_drops():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert_distribution(measured_distribution(logits, STEPS, top_p=0.6, min_p=0.8), [1.0, 0.0, 0.0, 0.0])
    assert_distribution(measured_distribution(logits, STEPS, top_p=0.6, min_p=0.7), [4 / 7, 3 / 7, 0.0, 0.0])


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("temperature", [1e-5, 1e-300])
def test_tiny_temperature_is_greedy(temperature, options):
    logits = [1.0, 88.0, -1e4, 87.9, 3.0]
    assert measured_distribution(logits, 8, temperature=temperature, **options) == [0, 1, 0, 0, 0]


def test_huge_temperature_is_uniform():
    assert measured_distribution([1.0, 80.0, -1e4, 3.0], 8, temperature=1e300) == [0.25] * 4


@pytest.mark.parametrize(
    "options", [{"top_p": 0.9}, {"top_p": 0.5, "min_p": 0.01}, {"top_k": 1500, "top_p": 0.99}], ids=str
)
@pytest.mark.parametrize("scale", [0.1, 3.0], ids=["flat", "peaked"])
def test_wide_vocabulary_against_inversion_in_order_of_likelihood(options, scale):
    vocab_size = 3000
    rows = [random_logits(vocab_size, seed, scale) for seed in range(12)]
    numbers = [(row + 0.5) / len(rows) for row in range(len(rows))]
    states = [state_with_uniform(vocab_size, number, **options) for number in numbers]
    tokens = [token.token_id for token in sample(torch.tensor(rows), states)]
    for logits, number, token_id in zip(rows, numbers, tokens, strict=True):
        expected, _ = reference_distribution(logits, **options)
        order = likeliest_first(logits)
        rank = order.index(token_id)
        before = sum(expected[i] for i in order[:rank])
        assert expected[token_id] > 0
        assert before - 1e-4 < number < before + expected[token_id] + 1e-4


def test_top_k_whose_total_is_beyond_the_precision_of_float64():
    vocab_size, rows = 12_000, 8
    logits = torch.stack([torch.tensor(random_logits(vocab_size, seed, 0.01)) for seed in range(rows)])
    states = [state_with_uniform(vocab_size, 1 - 2.0**-53, top_k=10_000) for _ in range(rows)]
    tokens = [token.token_id for token in sample(logits.clone(), states)]
    for row, token_id in zip(logits.tolist(), tokens, strict=True):
        assert 9_990 <= likeliest_first(row).index(token_id) < 10_000


@pytest.mark.parametrize("options", [{}, {"top_k": 6}, {"top_p": 0.95}], ids=str)
def test_draws_over_many_seeds_follow_the_distribution(options):
    logits, count = random_logits(8, seed=4, scale=1.0), 20_000
    expected, _ = reference_distribution(logits, **options)
    states = [make_state(8, seed=seed, **options) for seed in range(count)]
    tokens = [token.token_id for token in sample(torch.tensor([logits] * count), states)]
    observed = [tokens.count(token_id) for token_id in range(8)]
    assert all(share > 0 for share, seen in zip(expected, observed, strict=True) if seen)
    deviation = sum((o - count * e) ** 2 / (count * e) for o, e in zip(observed, expected, strict=True) if e)
    # At most 7 degrees of freedom: 30 is exceeded once in 10**4.
    assert deviation < 30
