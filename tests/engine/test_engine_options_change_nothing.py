"""Prefix caching, plan-ahead and overlap are about speed: with and without them the tokens are the same."""

from functools import cache
from pathlib import Path

import pytest
import torch
from dense_oracle import OracleResult, dense_generate
from in_process_engine import InProcessEngine, greedy
from tiny_models import reference_model, tiny_checkpoint

from zipage.config import EngineConfig, ScoringOptions, parse_scoring

NUM_TOKENS = 80


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("options") / "llama", "llama")


def prompts_with_common_beginnings() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 128, (count,), generator=generator).tolist()

    first, second = tokens(50), tokens(33)
    return [first, first + tokens(20), first[:40], second + tokens(5), second + tokens(40), second, first, tokens(9)]


def run(checkpoint: Path, **options) -> InProcessEngine:
    config = EngineConfig(model=str(checkpoint), block_size=8, max_num_seqs=5, max_num_batched_tokens=48, **options)
    engine = InProcessEngine.create(checkpoint, config)
    engine.generate(prompts_with_common_beginnings(), greedy(NUM_TOKENS))
    return engine


@cache
def oracle_result(
    checkpoint: Path, prompt: tuple[int, ...], scoring: str, budget: int, delays: tuple[int, ...]
) -> OracleResult:
    options = parse_scoring(scoring)
    return dense_generate(
        reference_model(checkpoint),
        list(prompt),
        NUM_TOKENS,
        options,
        block_size=8,
        kv_budget=budget,
        chunk=48,
        delays=delays,
    )


@pytest.mark.parametrize("plan_ahead", [True, False])
@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize(
    ("budget", "scoring"),
    [(0, "default"), (40, "default"), (56, "paper,window=8"), (48, "default,observe=spread,window=8")],
)
def test_tokens_and_kept_entries_are_the_oracles(
    checkpoint: Path, plan_ahead: bool, prefix_caching: bool, budget: int, scoring: str
) -> None:
    options: ScoringOptions = parse_scoring(scoring)
    engine = run(checkpoint, plan_ahead=plan_ahead, prefix_caching=prefix_caching, kv_budget=budget, scoring=options)
    for prompt, result in zip(prompts_with_common_beginnings(), engine.results.values(), strict=True):
        # A request may end before its last compression takes effect.
        delays = (*result.delays, NUM_TOKENS)
        oracle = oracle_result(checkpoint, tuple(prompt), scoring, budget, delays)
        assert result.tokens == oracle.tokens
        assert len(result.kept) == len(oracle.kept_positions)
        for kept, layers in zip(result.kept, oracle.kept_positions, strict=True):
            assert torch.equal(kept, torch.stack(layers))
    found = engine.scheduler.counters.cached_tokens
    assert (found > 0) == (prefix_caching and options.observe != "spread")


def test_compression_between_steps_keeps_what_stall_mode_does(checkpoint: Path) -> None:
    beside_steps = run(checkpoint, kv_budget=40, shadow_share=0.0)
    between_steps = run(checkpoint, kv_budget=40, overlap=False)
    assert between_steps.scheduler.counters.compressions == beside_steps.scheduler.counters.compressions > 0
    for one, other in zip(between_steps.results.values(), beside_steps.results.values(), strict=True):
        assert one.tokens == other.tokens
        assert all(torch.equal(kept, expected) for kept, expected in zip(one.kept, other.kept, strict=True))


def test_accumulated_attention_is_never_shared(checkpoint: Path) -> None:
    engine = run(checkpoint, kv_budget=48, scoring=ScoringOptions(observe="all", window=8))
    assert engine.scheduler.counters.cached_tokens == 0


def test_completions_of_one_prompt_share_it(checkpoint: Path) -> None:
    config = EngineConfig(model=str(checkpoint), block_size=8, max_num_seqs=8)
    engine = InProcessEngine.create(checkpoint, config)
    prompt = list(range(3, 53))
    engine.generate([prompt] * 4, greedy(5))
    assert engine.scheduler.counters.cached_tokens == 3 * 48
    # Six full blocks once, and for each completion the seventh.
    assert engine.scheduler.holdings.blocks.peak == 6 + 4


def test_the_next_conversation_turn_finds_the_last(checkpoint: Path) -> None:
    config = EngineConfig(model=str(checkpoint), block_size=8, max_num_seqs=8)
    engine = InProcessEngine.create(checkpoint, config)
    prompt = list(range(3, 23))
    (first,) = engine.generate([prompt], greedy(30))
    engine.generate([prompt + first.tokens + [5, 6]], greedy(5))
    # Of the 50 tokens of the first turn the last was never computed, and 49 fill six blocks.
    assert engine.scheduler.counters.cached_tokens == 48
