"""Sampling of whole batches: greedy choice, log-probabilities, independence of the batch, resumption."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import likeliest_first, make_state, state_with_uniform

from zipage.engine_messages import SampledToken
from zipage.execution.sampling import sample

ALMOST_ONE = 1 - 2.0**-53
FILTERS = [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 3, "top_p": 0.9, "min_p": 0.05}]

MIXED = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"temperature": 0.7, "top_p": 0.9, "logprobs": 5},
    {"min_p": 0.1, "logprobs": 0},
    {"temperature": 0.0, "logprobs": 20},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"logit_bias": {3: 4.0, 5: -100.0}, "logprobs": 2},
    {"min_tokens": 4, "top_k": 1},
    {"temperature": 1e-5},
    {"temperature": 30.0, "top_p": 0.999},
    {"temperature": 5.0, "min_p": 0.5},
    {"top_k": 40, "repetition_penalty": 0.9, "logprobs": 3},
    {"temperature": 0.0, "logit_bias": {0: 100.0}},
    {"temperature": 2.0, "top_k": 2, "top_p": 0.5, "min_p": 0.9},
]


def random_logits(rows, vocab_size, seed=0, scale=3.0):
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def mixed_states(vocab_size, output_ids=()):
    return [
        make_state(vocab_size, prompt_ids=[1, 2, 3], output_ids=output_ids, eos_token_ids=[0], seed=100 + i, **options)
        for i, options in enumerate(MIXED)
    ]


def test_plain_greedy_batch_takes_the_highest_logit():
    logits = random_logits(4, 64)
    states = [make_state(64, temperature=0.0, top_k=5, top_p=0.5) for _ in range(4)]
    assert sample(logits.clone(), states) == [SampledToken(token_id=i) for i in logits.argmax(dim=1).tolist()]


def test_empty_batch():
    assert sample(torch.empty(0, 64), []) == []


@pytest.mark.parametrize("companion", [{}, {"temperature": 0.0}], ids=["with a draw", "all greedy"])
def test_greedy_tie_goes_to_the_lowest_id(companion):
    logits = torch.zeros(2, 300)
    logits[0, [70, 71, 280]] = 2.0
    tokens = sample(logits, [make_state(300, temperature=0.0), make_state(300, **companion)])
    assert tokens[0].token_id == 70


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 3.0]), min_size=1, max_size=40), st.booleans())
def test_greedy_ties_of_any_kind(values, processed):
    options = {"frequency_penalty": 1.0} if processed else {}
    [token] = sample(torch.tensor([values]), [make_state(len(values), temperature=0.0, **options)])
    assert token.token_id == values.index(max(values))


@pytest.mark.parametrize("vocab_size", [64, 1001, 3001])
@pytest.mark.parametrize("num_outputs", [0, 5])
def test_rows_do_not_depend_on_their_batch(vocab_size, num_outputs):
    output_ids = list(range(10, 10 + num_outputs))
    logits = random_logits(len(MIXED), vocab_size, seed=vocab_size)
    together = sample(logits.clone(), mixed_states(vocab_size, output_ids))
    reordered = sample(logits.flip(0).clone(), mixed_states(vocab_size, output_ids)[::-1])[::-1]
    alone = [
        sample(logits[row : row + 1].clone(), [state])[0]
        for row, state in enumerate(mixed_states(vocab_size, output_ids))
    ]
    assert together == alone
    assert reordered == alone


def test_batch_larger_than_the_scratch_memory():
    rows, vocab_size = 300, 4096
    logits = random_logits(rows, vocab_size)
    options = [{"temperature": 0.0, "logprobs": 1}, {"temperature": 0.5}, {"top_k": 8}]
    states = [make_state(vocab_size, seed=row, **options[row % 3]) for row in range(rows)]
    together = sample(logits.clone(), states)
    assert len(together) == rows
    for row in range(0, rows, 13):
        assert sample(logits[row : row + 1].clone(), [states[row]]) == [together[row]]


def test_resumed_request_goes_on_the_same_way():
    vocab_size, length = 64, 12
    steps = [random_logits(len(MIXED), vocab_size, seed=step, scale=1.5) for step in range(length)]
    states = mixed_states(vocab_size)
    outputs = [[] for _ in MIXED]
    results = []
    for logits in steps:
        results.append(sample(logits.clone(), states))
        for state, output, token in zip(states, outputs, results[-1], strict=True):
            state.append(token.token_id)
            output.append(token.token_id)
    for step in (1, 3, 4, 11):
        resumed = [mixed_states(vocab_size, output[:step])[row] for row, output in enumerate(outputs)]
        assert sample(steps[step].clone(), resumed) == results[step]


def test_draws_change_with_seed_and_output_length():
    vocab_size = 500
    states = [make_state(vocab_size, seed=seed, output_ids=[0] * n) for seed in range(5) for n in range(5)]
    tokens = {token.token_id for token in sample(torch.zeros(25, vocab_size), states)}
    assert len(tokens) > 20


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("number", [0.0, ALMOST_ONE])
def test_impossible_tokens_are_never_drawn(number, options):
    logits = torch.full((1, 8), -math.inf)
    logits[0, [2, 5]] = torch.tensor([1.0, 1.25])
    logits[0, 6] = -1e4
    [token] = sample(logits, [state_with_uniform(8, number, **options)])
    assert token.token_id in (2, 5)


@pytest.mark.parametrize("options", [*FILTERS, {"temperature": 0.0}], ids=str)
def test_vocabulary_that_is_forbidden_altogether_gives_token_zero(options):
    state = make_state(6, min_tokens=1, stop_token_ids=tuple(range(6)), **options)
    assert sample(torch.arange(6.0).unsqueeze(0), [state])[0].token_id == 0


@pytest.mark.parametrize("options", [*FILTERS, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("vocab_size", [6, 7])
def test_logits_that_are_not_numbers_give_a_token_of_the_vocabulary(vocab_size, options):
    broken = torch.full((10, vocab_size), math.nan)
    broken[5:, :3] = 1.0
    states = [state_with_uniform(vocab_size, row % 5 / 5, logprobs=2, **options) for row in range(10)]
    for token in sample(broken, states):
        assert 0 <= token.token_id < vocab_size


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 3),
        ({"logit_bias": {1: 5.0}}, 1),
        ({"min_tokens": 3}, 2),
        ({"min_tokens": 2}, 3),
        ({"repetition_penalty": 2.0}, 0),
        ({"presence_penalty": 1.5}, 2),
        ({"frequency_penalty": 0.7}, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("draw", [{"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-5}, {"min_p": 1.0}], ids=str)
def test_choice_is_made_from_processed_logits(options, expected, draw):
    state = make_state(4, prompt_ids=[2], output_ids=[3, 3], eos_token_ids=[3], **options, **draw)
    assert sample(torch.tensor([[2.1, 0.0, 3.0, 4.0]]), [state])[0].token_id == expected


@pytest.mark.parametrize("options", [*FILTERS, {"temperature": 0.0}], ids=str)
def test_equal_bias_on_every_token_changes_nothing(options):
    logits = torch.randint(-16, 16, (8, 12), generator=torch.Generator().manual_seed(3)) / 8
    plain = [make_state(12, seed=seed, **options) for seed in range(8)]
    biased = [make_state(12, seed=seed, logit_bias=dict.fromkeys(range(12), -100.0), **options) for seed in range(8)]
    assert sample(logits.clone(), biased) == sample(logits.clone(), plain)


def test_states_made_and_sampled_under_inference_mode():
    with torch.inference_mode():
        state = make_state(16, prompt_ids=[1], repetition_penalty=1.5, logit_bias={2: 1.0})
        logits = random_logits(1, 16)
        expected = sample(logits.clone(), [state])
    assert sample(logits, [state]) == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.3, "top_k": 2},
        {"repetition_penalty": 5.0, "logit_bias": {1: 50.0, 4: -100.0}, "min_tokens": 1, "presence_penalty": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("vocab_size", [5, 64, 2500])
def test_logprobs_are_those_of_the_raw_logits(options, vocab_size):
    logits = random_logits(6, vocab_size, seed=1, scale=4.0)
    expected = logits.double().log_softmax(dim=1).tolist()
    counts = [None, 0, 1, 3, 7, 20]
    states = [
        make_state(vocab_size, prompt_ids=[0, 1], eos_token_ids=[2], seed=row, logprobs=count, **options)
        for row, count in enumerate(counts)
    ]
    for row, (token, count) in enumerate(zip(sample(logits.clone(), states), counts, strict=True)):
        if count is None:
            assert token.logprob is None
            assert token.top is None
            continue
        assert token.logprob == pytest.approx(expected[row][token.token_id], abs=1e-6)
        top_ids = likeliest_first(logits[row].tolist())[:count]
        assert [token_id for token_id, _ in token.top] == top_ids
        assert [value for _, value in token.top] == pytest.approx([expected[row][i] for i in top_ids], abs=1e-6)


def test_logprobs_do_not_change_the_choice():
    logits = random_logits(8, 64, seed=5)
    plain = [make_state(64, seed=row) for row in range(8)]
    asked = [make_state(64, seed=row, logprobs=4) for row in range(8)]
    assert [t.token_id for t in sample(logits.clone(), asked)] == [t.token_id for t in sample(logits.clone(), plain)]
