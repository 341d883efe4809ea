"""Sampling defaults, seeds and end-of-sequence tokens."""

import itertools

import msgspec
import pytest

from zipage.models.config import GenerationDefaults, load_model_config
from zipage.models.source import default_model
from zipage.sampling_params import SamplingParams
from zipage.text.defaults import derive_seed, end_of_sequence_ids, resolve_params

OPEN_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def resolved(params: SamplingParams, defaults: GenerationDefaults) -> tuple:
    result = resolve_params(params, defaults, 0, 0, 0)
    return tuple(getattr(result, field) for field in OPEN_FIELDS)


@pytest.mark.parametrize(
    ("params", "defaults", "expected"),
    [
        ({}, {}, (1.0, 0, 1.0, 0.0, 1.0)),
        ({}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}, (0.6, 20, 0.95, 0.0, 1.0)),
        ({}, {"min_p": 0.1, "repetition_penalty": 1.1}, (1.0, 0, 1.0, 0.1, 1.1)),
        ({}, {"do_sample": True, "temperature": 0.6}, (0.6, 0, 1.0, 0.0, 1.0)),
        ({}, {"do_sample": False, "temperature": 0.6}, (0.0, 0, 1.0, 0.0, 1.0)),
        ({"temperature": 0.7}, {"do_sample": False}, (0.7, 0, 1.0, 0.0, 1.0)),
        ({"temperature": 0.0, "top_k": 0}, {"temperature": 0.6, "top_k": 20}, (0.0, 0, 1.0, 0.0, 1.0)),
        ({"top_p": 0.5, "min_p": 0.0}, {"top_p": 0.9, "min_p": 0.2}, (1.0, 0, 0.5, 0.0, 1.0)),
        ({"repetition_penalty": 1.0}, {"repetition_penalty": 1.2}, (1.0, 0, 1.0, 0.0, 1.0)),
    ],
)
def test_request_before_model_before_neutral(params: dict, defaults: dict, expected: tuple) -> None:
    assert resolved(SamplingParams(**params), GenerationDefaults(**defaults)) == expected


def test_other_fields_stay_as_they_are() -> None:
    params = SamplingParams(
        n=3,
        seed=1,
        stop=("x",),
        max_tokens=7,
        min_tokens=2,
        logprobs=4,
        logit_bias={3: 1.5},
        kv_budget=64,
        priority=-2,
        deadline=3.5,
    )
    result = resolve_params(params, GenerationDefaults(), 5, 9, 2)
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert result == msgspec.structs.replace(params, n=1, seed=3, **neutral)


def test_seed_of_the_request_counts_up_and_wraps() -> None:
    seeds = [
        resolve_params(SamplingParams(n=4, seed=2**63 - 2), GenerationDefaults(), 3, uid, index).seed
        for uid, index in ((70, 0), (71, 1), (72, 2), (90, 3))
    ]
    assert seeds == [2**63 - 2, 2**63 - 1, 0, 1]


def test_derived_seeds_differ_by_engine_seed_and_uid() -> None:
    seeds = {
        resolve_params(SamplingParams(), GenerationDefaults(), engine_seed, uid, index).seed
        for engine_seed, uid, index in itertools.product((0, 1, 2, 2**63 - 1), range(200), (0, 1))
    }
    assert len(seeds) == 4 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        ones = sum(derive_seed(0, uid) >> bit & 1 for uid in range(400))
        assert 140 < ones < 260


def test_derived_seed_is_fixed() -> None:
    # First outputs of the published SplitMix64 with state 0, shifted right by one.
    assert [derive_seed(0, uid) for uid in (0, 1)] == [0xE220A8397B1DCDAF >> 1, 0x6E789E6AA1B965F4 >> 1]


@pytest.mark.parametrize(
    ("configured", "generation", "tokenizer_eos", "expected"),
    [
        ((2,), None, None, (2,)),
        ((2,), None, 2, (2,)),
        ((2,), (5, 3), None, (3, 5)),
        ((2,), (3,), 7, (3, 7)),
        ((), None, 7, (7,)),
        ((2,), (), None, ()),
        ((), (95, 96), 900, (95,)),
    ],
)
def test_end_of_sequence_ids(
    configured: tuple[int, ...],
    generation: tuple[int, ...] | None,
    tokenizer_eos: int | None,
    expected: tuple[int, ...],
) -> None:
    model = msgspec.structs.replace(load_model_config(default_model()), eos_token_ids=configured)
    assert end_of_sequence_ids(model, GenerationDefaults(eos_token_ids=generation), tokenizer_eos) == expected
