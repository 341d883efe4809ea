"""Logit bias, min_tokens and penalties, and the history that they need."""

import math

import pytest
import torch
from sampling_cases import make_state, resolved
from transformers import RepetitionPenaltyLogitsProcessor

from zipage.execution.logit_processing import process_logits
from zipage.execution.sampling_state import SamplingState

VOCAB = 40


def random_logits(rows, seed=0, vocab_size=VOCAB):
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def processed(logits, states):
    result = logits.clone()
    process_logits(result, states)
    return result


def process_slowly(
    logits, prompt_ids, output_ids, *, repetition=1.0, presence=0.0, frequency=0.0, bias=None, banned=()
):
    result = [x + (bias or {}).get(token_id, 0.0) for token_id, x in enumerate(logits)]
    for token_id in range(len(result)):
        if token_id in banned:
            result[token_id] = -math.inf
        if token_id in {*prompt_ids, *output_ids}:
            result[token_id] *= 1 / repetition if result[token_id] > 0 else repetition
        count = output_ids.count(token_id)
        result[token_id] -= frequency * count + presence * (count > 0)
    return result


@pytest.mark.parametrize("penalty", [0.5, 1.1, 2.0])
def test_repetition_penalty_is_that_of_transformers(penalty):
    logits = random_logits(1)
    prompt_ids, output_ids = [1, 2, 3, 3, 7], [7, 8, 39, 8]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt_ids + output_ids]), logits.clone())
    state = make_state(VOCAB, prompt_ids=prompt_ids, output_ids=output_ids, repetition_penalty=penalty)
    assert torch.equal(processed(logits, [state]), expected)


@pytest.mark.parametrize(
    ("repetition", "presence", "frequency"),
    [(1.0, 0.7, 0.0), (1.0, 0.0, 0.3), (1.0, -2.0, 1.5), (1.3, 0.5, -0.25), (0.8, 0.0, 0.0)],
)
def test_penalties_against_one_token_at_a_time(repetition, presence, frequency):
    logits = random_logits(1, seed=1)
    prompt_ids, output_ids = [0, 5, 5, 9], [5, 6, 6, 6, 30]
    state = make_state(
        VOCAB,
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    expected = process_slowly(
        logits[0].tolist(), prompt_ids, output_ids, repetition=repetition, presence=presence, frequency=frequency
    )
    assert processed(logits, [state])[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_rows_of_every_kind_together():
    logits = random_logits(5, seed=2)
    bias = {3: 5.0, 0: -100.0}
    states = [
        make_state(VOCAB),
        make_state(VOCAB, logit_bias=bias, prompt_ids=[3], repetition_penalty=1.5),
        make_state(VOCAB, presence_penalty=1.0),
        make_state(VOCAB, min_tokens=2, eos_token_ids=[4], output_ids=[9], frequency_penalty=1.0),
        make_state(VOCAB, logit_bias={39: 1.25}, min_tokens=1, stop_token_ids=(39, 2)),
    ]
    expected = [
        logits[0].tolist(),
        process_slowly(logits[1].tolist(), [3], [], bias=bias, repetition=1.5),
        logits[2].tolist(),
        process_slowly(logits[3].tolist(), [], [9], banned=[4], frequency=1.0),
        process_slowly(logits[4].tolist(), [], [], banned=[39, 2]),
    ]
    for row, values in zip(processed(logits, states).tolist(), expected, strict=True):
        assert row == pytest.approx(values, abs=1e-5)


def test_bias_comes_before_the_repetition_penalty():
    logits = torch.tensor([[-1.0, 0.0]])
    state = make_state(2, prompt_ids=[0], logit_bias={0: 3.0}, repetition_penalty=2.0)
    assert processed(logits, [state]).tolist() == [[1.0, 0.0]]


def test_minimum_beats_a_bias_towards_the_end():
    state = make_state(
        VOCAB, min_tokens=1, eos_token_ids=[4], logit_bias={4: 100.0}, prompt_ids=[4], presence_penalty=-2.0
    )
    assert processed(random_logits(1), [state])[0, 4] == -math.inf


@pytest.mark.parametrize(
    ("ignore_eos", "stop_token_ids", "expected"),
    [(False, (), {4, 5}), (False, (7,), {4, 5, 7}), (True, (7, 5), {5, 7}), (True, (), set())],
)
def test_min_tokens_forbids_what_would_stop(ignore_eos, stop_token_ids, expected):
    state = make_state(VOCAB, min_tokens=3, ignore_eos=ignore_eos, stop_token_ids=stop_token_ids, eos_token_ids=(4, 5))
    for length in range(5):
        [row] = processed(random_logits(1, seed=length), [state]).tolist()
        assert {i for i, x in enumerate(row) if x == -math.inf} == (expected if length < 3 else set())
        state.append(0)


def test_end_of_sequence_token_beyond_the_vocabulary_is_ignored():
    state = make_state(VOCAB, min_tokens=3, eos_token_ids=(VOCAB, VOCAB - 1))
    assert state.forbidden_ids.tolist() == [VOCAB - 1]


def test_resumed_request_does_not_start_its_minimum_again():
    state = make_state(VOCAB, min_tokens=2, eos_token_ids=(4,), output_ids=[1, 2])
    assert not state.changes_logits


@pytest.mark.parametrize("outside_inference_mode", [True, False])
def test_appending_is_the_same_as_starting_with_the_output(outside_inference_mode):
    vocab_size = 2000
    options = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1}
    output_ids = [(7 * i * i) % 1999 for i in range(1500)]
    with torch.inference_mode():
        appended = make_state(vocab_size, prompt_ids=[3, 1, 1], **options)
    with torch.inference_mode(not outside_inference_mode):
        for token_id in output_ids:
            appended.append(token_id)
    made = make_state(vocab_size, prompt_ids=[3, 1, 1], output_ids=output_ids, **options)
    logits = random_logits(1, vocab_size=vocab_size)
    assert len(set(output_ids)) > 600
    assert torch.equal(processed(logits, [appended]), processed(logits, [made]))


@pytest.mark.parametrize("penalty", [1e-300, 1e300])
def test_extreme_repetition_penalty_leaves_no_nan(penalty):
    logits = torch.tensor([[0.0, 30.0, -30.0, 1.0]])
    state = make_state(4, prompt_ids=[0, 1, 2], repetition_penalty=penalty)
    result = processed(logits, [state])
    assert not result.isnan().any()
    assert (result < math.inf).all()


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"])
def test_unresolved_parameters_are_refused(field):
    with pytest.raises(ValueError, match=field):
        SamplingState(resolved(**{field: None}), [], [], (), VOCAB, "cpu")
