"""Throughput runs: prompts for every vocabulary, and nothing is measured of requests that did not run."""

import click
import pytest

from tools.bench_runs import measure, measure_run, parse_run
from tools.bench_workloads import Workload, random_prompts
from zipage import LLM
from zipage.models.source import default_model

WORKLOAD = Workload("qwen3-0.6b", 0.01, requests=3, prompt_tokens=40, output_tokens=24, shared_tokens=16)


@pytest.mark.parametrize("vocab_size", [2, 96, 128_256, 151_936])
def test_prompts_are_in_the_vocabulary(vocab_size):
    prompts = random_prompts(WORKLOAD, 0, vocab_size)
    assert [len(prompt) for prompt in prompts] == [40] * 3
    assert all(0 <= token < vocab_size for prompt in prompts for token in prompt)
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 1


def test_large_vocabularies_have_the_same_prompts():
    assert random_prompts(WORKLOAD, 3, 128_256) == random_prompts(WORKLOAD, 3, 151_936)
    assert random_prompts(WORKLOAD, 3, 151_936) != random_prompts(WORKLOAD, 4, 151_936)


def test_a_run_of_any_model_directory():
    run = parse_run("48:16", {"device": "cpu"})
    measured = measure_run(default_model(), {"tiny": WORKLOAD}, run, None)["workloads"]["tiny"]
    assert measured["output_tokens"] == 3 * 24
    assert measured["steps"] > 0
    assert measured["integrity_errors"] == []


def test_refused_requests_are_an_error():
    prompts = [[5] * 40, [100_000] * 40]
    refused = r"24 of 48 output tokens came, refused: .*100000"
    with (
        LLM(default_model(), device="cpu", kv_cache_gb=0.01) as llm,
        pytest.raises(click.ClickException, match=refused),
    ):
        measure(llm, WORKLOAD, prompts)
