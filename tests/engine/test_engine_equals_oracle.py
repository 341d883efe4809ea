"""The engine with compression against the dense oracle: the same entries kept, the same tokens afterwards."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest
import torch
from dense_oracle import OracleResult, dense_generate
from in_process_engine import InProcessEngine, Result, greedy
from tiny_models import reference_model, tiny_checkpoint

from zipage.config import EngineConfig, ScoringOptions, parse_scoring
from zipage.engine_messages import Job

NUM_TOKENS = 72
MAX_NUM_BATCHED_TOKENS = 40
# Shorter than, equal to and longer than the budgets below, so that requests compress at different times; the last ones
# also while their prompts are computed.
PROMPT_LENGTHS = (3, 17, 32, 50, 71, 100, 150)

SCORINGS = [
    "default",
    "default,pin_share=0,recent_share=0,anchor_share=0",
    "default,pin_share=0,recent_share=0,anchor_share=1",
    "paper",
    "paper,redundancy=full",
    "paper,redundancy=off",
    "default,pin_share=0,decay=0,recent_share=0",
    "default,pin_share=0,pooling=always,recent_share=0",
    "default,pin_share=0,pooling=first,recent_share=0,recent=2",
    "default,pin_share=0,observe=spread,window=8,recent_share=0",
    "default,pin_share=0,observe=spread,window=6",
    "default,pin_share=0,observe=all,window=8,recent_share=0",
    "default,pin_share=0,observe=all,window=4,redundancy=lightning",
    "default,pin_share=0,window=8,recent_share=0,redundancy=full,attention_weight=0.7,similarity_threshold=0.1",
    "default,pin_share=0,window=4,recent_share=0,redundancy=lightning,redundancy_temperature=0.1,similarity_threshold=-0.2",
    "default,window=4,recent_share=0",
    "default,pin_share=0,window=8,recent_share=0,sinks=0,recent=0",
]
BLOCKS_AND_BUDGETS = [(8, 33), (16, 48), (32, 64)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("oracle") / "qwen3", "qwen3")


@cache
def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


def oracle_results(
    checkpoint: Path,
    scoring: ScoringOptions,
    block_size: int,
    budget: int,
    all_delays: Sequence[Sequence[int]] = ((),) * len(PROMPT_LENGTHS),
) -> list[OracleResult]:
    model = reference_model(checkpoint)
    return [
        dense_generate(
            model,
            prompt,
            NUM_TOKENS,
            scoring,
            block_size=block_size,
            kv_budget=budget,
            chunk=MAX_NUM_BATCHED_TOKENS // block_size * block_size,
            delays=delays,
        )
        for prompt, delays in zip(make_prompts(), all_delays, strict=True)
    ]


def check_equal(results: list[Result], expected: list[OracleResult], config: EngineConfig) -> None:
    """Also no request held more than its budget and a chunk, and behind a shadow job one block."""
    max_blocks, block_size = config.max_blocks_per_request, config.block_size
    for result, oracle, prompt_length in zip(results, expected, PROMPT_LENGTHS, strict=True):
        assert len(result.kept) == len(oracle.kept_positions)
        for kept, layers in zip(result.kept, oracle.kept_positions, strict=True):
            assert torch.equal(kept, torch.stack(layers))
        assert result.tokens == oracle.tokens
        assert result.metrics.compressions == len(oracle.kept_positions)
        chunk = min(MAX_NUM_BATCHED_TOKENS // block_size, max(0, -(-prompt_length // block_size) - max_blocks))
        assert result.metrics.peak_blocks <= max_blocks + chunk + (config.shadow_share > 0)
    assert all(result.kept for result in results), "every request is long enough to be compressed"


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize(("block_size", "budget"), BLOCKS_AND_BUDGETS)
def test_same_entries_and_tokens(checkpoint: Path, scoring: str, block_size: int, budget: int) -> None:
    options = parse_scoring(scoring)
    config = EngineConfig(
        model=str(checkpoint),
        block_size=block_size,
        kv_budget=budget,
        scoring=options,
        max_num_seqs=8,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        shadow_share=0,
    )
    engine = InProcessEngine.create(checkpoint, config)
    results = engine.generate(make_prompts(), greedy(NUM_TOKENS))
    assert not any(delay for result in results for delay in result.delays)
    expected = oracle_results(checkpoint, options, block_size, budget)
    check_equal(results, expected, config)
    assert engine.scheduler.holdings.blocks.num_used == 0
    assert engine.scheduler.holdings.buffers.num_used == 0


@pytest.mark.parametrize("shadow_share", [0.0, 0.2, 0.9])
@pytest.mark.parametrize(
    "scoring",
    [
        "default",
        "paper,window=8",
        "default,pin_share=0,observe=spread,window=6",
        "default,pin_share=0,observe=all,window=8,recent_share=0",
    ],
)
def test_late_and_reordered_jobs(checkpoint: Path, scoring: str, shadow_share: float) -> None:
    """Jobs that wait while others decode, and finish in the other order, in a pool where requests have to queue.

    In stall mode nobody sees that. In shadow mode the oracle evicts what it has chosen as late as the engine did.
    """
    options = parse_scoring(scoring)
    config = EngineConfig(
        model=str(checkpoint),
        block_size=8,
        kv_budget=33,
        scoring=options,
        max_num_seqs=8,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        shadow_share=shadow_share,
    )
    engine = InProcessEngine.create(checkpoint, config, pool_bytes=600_000)
    calls = [0]

    def newest_every_third_time(jobs: list[Job]) -> list[Job]:
        calls[0] += 1
        idle = all(request.job is not None for request in engine.scheduler.lives.running)
        return jobs[-1:] if idle or calls[0] % 3 == 0 else []

    engine.finish_jobs = newest_every_third_time
    results = engine.generate(make_prompts(), greedy(NUM_TOKENS))
    assert engine.most_waiting > 0
    assert any(any(result.delays) for result in results) == (shadow_share > 0 and options.observe != "all")
    # A request may end before its last compression takes effect.
    delays = [[*result.delays, NUM_TOKENS] for result in results]
    expected = oracle_results(checkpoint, options, 8, 33, delays)
    check_equal(results, expected, config)


@pytest.mark.parametrize("observe", ["last", "spread", "all"])
def test_a_budget_that_is_never_reached_changes_no_bit(checkpoint: Path, observe: str) -> None:
    without = EngineConfig(
        model=str(checkpoint), block_size=16, max_num_seqs=8, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS
    )
    budgeted = EngineConfig(
        model=str(checkpoint),
        block_size=16,
        max_num_seqs=8,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        kv_budget=240,
        scoring=ScoringOptions(observe=observe),
    )
    # Without a limit to their tokens all of them could fill the budget, so all are recorded.
    params = msgspec.structs.replace(greedy(None), logprobs=3)
    results = []
    for config in (without, budgeted):
        engine = InProcessEngine.create(checkpoint, config)
        sampled = engine.generate(make_prompts(), params, max_steps=90)
        results.append([result.sampled for result in sampled])
        assert engine.scheduler.counters.compressions == 0
        # Else nothing about recording would be tested.
        recorded = engine.pool.queries if engine.pool.observed is None else engine.pool.observed
        assert bool(recorded.any()) == bool(config.kv_budget)
    assert results[0] == results[1]


def test_requests_with_budgets_of_their_own(checkpoint: Path) -> None:
    options = parse_scoring("default,pin_share=0,window=4")
    config = EngineConfig(
        model=str(checkpoint),
        block_size=8,
        kv_budget=40,
        scoring=options,
        max_num_seqs=8,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
    )
    engine = InProcessEngine.create(checkpoint, config)
    budgets = [None, 24, 0, 33, 64, 0, 24]
    params = [msgspec.structs.replace(greedy(NUM_TOKENS), kv_budget=budget) for budget in budgets]
    results = engine.generate(make_prompts(), params)
    model = reference_model(checkpoint)
    for prompt, budget, result in zip(make_prompts(), budgets, results, strict=True):
        effective = 40 if budget is None else budget
        oracle = dense_generate(
            model,
            prompt,
            NUM_TOKENS,
            options,
            block_size=8,
            kv_budget=effective,
            chunk=MAX_NUM_BATCHED_TOKENS,
            delays=[*result.delays, NUM_TOKENS],
        )
        assert result.tokens == oracle.tokens
        assert len(result.kept) == len(oracle.kept_positions)
        assert bool(result.kept) == (budget != 0)
