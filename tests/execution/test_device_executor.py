"""Steps on the kernels, with tokens that stay on the device, against the CPU path: the same tokens, the same pool."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_process_engine import InProcessEngine, greedy
from tiny_models import tiny_checkpoint

from zipage.config import EngineConfig, ScoringOptions
from zipage.engine_messages import CompressionJob
from zipage.eviction.job import JobResult, run_job
from zipage.execution.device_executor import DeviceExecutor
from zipage.execution.host_memory import HostMemory
from zipage.execution.pool import KVPool, allocate_on_device
from zipage.execution.warm_up import warm_up
from zipage.models.config import load_model_config
from zipage.models.loading import load_decoder
from zipage.models.operations import kernel_operations
from zipage.sampling_params import SamplingParams

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "qwen3", num_hidden_layers=2)


@pytest.fixture
def engines(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[InProcessEngine, ...]]:
    """Makes an engine on the CPU path, and one of the same shape on the kernels."""

    def make(pool_bytes: int = 1 << 20, **options) -> tuple[InProcessEngine, ...]:
        config = EngineConfig(model="m", block_size=8, max_num_batched_tokens=64, **options)
        plain = InProcessEngine.create(checkpoint, config, pool_bytes)
        on_kernels = InProcessEngine.create(checkpoint, config, pool_bytes)
        with monkeypatch.context() as patch:
            patch.setattr("zipage.models.decoder.operations_for", kernel_operations)
            decoder = load_decoder(checkpoint, load_model_config(checkpoint), torch.float32, DEVICE)
        # The engine follows survivors on the CPU.
        monkeypatch.setattr("in_process_engine.run_job", run_job_for_the_cpu)
        on_kernels.pool = allocate_on_device(plain.pool.geometry, DEVICE)
        on_kernels.host_memory = HostMemory(on_kernels.pool)
        on_kernels.executor = DeviceExecutor(decoder, on_kernels.pool, config, 256)
        if DEVICE.type == "cuda":
            on_kernels.executor.graphs.capture()
        return plain, on_kernels

    return make


def run_job_for_the_cpu(job: CompressionJob, pool: KVPool, scoring: ScoringOptions) -> JobResult:
    result = run_job(job, pool, scoring)
    return replace(result, kept=result.kept.cpu())


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in lengths]


def sampled(**changes) -> SamplingParams:
    fields = {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 5}
    return SamplingParams(**fields | {"max_tokens": 7, "ignore_eos": True} | changes)


def check_same(engines: tuple[InProcessEngine, ...], requests: list[list[int]], params) -> None:
    plain, on_kernels = engines
    expected = plain.generate(requests, params)
    actual = on_kernels.generate(requests, params)
    for result, reference in zip(actual, expected, strict=True):
        assert result.tokens == reference.tokens
        assert len(result.kept) == len(reference.kept)


def test_greedy_tokens_of_a_mixed_batch(engines):
    check_same(engines(max_num_seqs=3), prompts(5, 70, 1, 17), greedy(10))


@pytest.mark.parametrize("observe", ["last", "spread", "all"])
def test_greedy_tokens_with_compressions(engines, observe):
    scoring = ScoringOptions(observe=observe, window=4, recent_share=0.3)
    pair = engines(max_num_seqs=3, kv_budget=24, scoring=scoring)
    check_same(pair, prompts(9, 30), greedy(18))
    assert any(result.kept for result in pair[1].results.values())


def test_every_sampling_option_in_one_batch(engines):
    """The host samples where the kernels cannot, and gives a row back once min_tokens are reached."""
    params = [
        sampled(),
        sampled(top_k=5, seed=6),
        sampled(top_p=0.7, min_p=0.02, seed=7),
        sampled(repetition_penalty=1.3, presence_penalty=0.5, seed=8),
        sampled(logit_bias={7: 4.0}, seed=9),
        sampled(min_tokens=3, ignore_eos=False, seed=10),
        sampled(logprobs=2, temperature=0.0),
        greedy(7),
    ]
    check_same(engines(max_num_seqs=8), prompts(*[6] * len(params)), params)


def test_logprobs_are_returned(engines):
    plain, on_kernels = engines(max_num_seqs=2)
    params = sampled(logprobs=2, max_tokens=4)
    expected = plain.generate(prompts(6), params)[0].sampled
    actual = on_kernels.generate(prompts(6), params)[0].sampled
    for token, reference in zip(actual, expected, strict=True):
        assert token.logprob == pytest.approx(reference.logprob, abs=1e-4)
        assert [token_id for token_id, _ in token.top] == [token_id for token_id, _ in reference.top]


def test_completions_share_the_blocks_that_their_step_fills(engines):
    (prompt,) = prompts(17)
    check_same(engines(max_num_seqs=4), [prompt, prompt, prompt], greedy(5))


def test_rows_are_used_again(engines):
    pair = engines(max_num_seqs=2)
    check_same(
        pair, prompts(9, 12, 30, 4, 8), [greedy(4), sampled(max_tokens=5), greedy(3), sampled(seed=9), greedy(5)]
    )


@pytest.mark.parametrize("observe", ["last", "all"])
def test_warming_up_changes_no_answer(engines, observe):
    scoring = ScoringOptions(observe=observe, window=4, sinks=1)
    pair = engines(max_num_seqs=3, kv_budget=32, scoring=scoring)
    executor = pair[1].executor
    warm_up(executor, EngineConfig(model="m", block_size=8, max_num_batched_tokens=64, max_num_seqs=3), 256)
    assert not executor.table.rows
    # Blocks are full, and the budget with them, after two tokens, after two, and not at all.
    check_same(pair, prompts(70, 30, 1), greedy(6))
    assert [len(result.kept) for result in pair[1].results.values()] == [1, 1, 0]
