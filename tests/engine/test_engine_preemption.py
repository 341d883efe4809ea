"""Preemption and swapping change no token: the engine against the dense oracle, with requests taken out at random."""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from dense_oracle import dense_generate
from in_process_engine import InProcessEngine, Result, greedy
from tiny_models import reference_model, tiny_checkpoint

from zipage.config import EngineConfig, ScoringOptions, parse_scoring
from zipage.engine_messages import Job, TokenRequest
from zipage.scheduling.scheduler import Scheduler

NUM_TOKENS = 60
CHUNK = 40
BUDGET = 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("preemption") / "qwen3", "qwen3")


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in (9, 30, 47, 100, 21, 64)]


def make_engine(checkpoint: Path, swap_bytes: int, pool_bytes: int = 500_000, **options) -> InProcessEngine:
    config = EngineConfig(
        model=str(checkpoint), block_size=8, max_num_seqs=5, max_num_batched_tokens=CHUNK, kv_budget=BUDGET, **options
    )
    return InProcessEngine.create(checkpoint, config, pool_bytes=pool_bytes, swap_bytes=swap_bytes)


def preempt_at_random(numbers: random.Random, share: float) -> Callable[[Scheduler], None]:
    def before_plan(scheduler: Scheduler) -> None:
        scheduler.preempt([request.uid for request in scheduler.lives.running if numbers.random() < share])

    return before_plan


def some_of(numbers: random.Random) -> Callable[[list[Job]], list[Job]]:
    """Jobs finish in any order, and at least one of them at a time."""
    return lambda jobs: numbers.sample(jobs, numbers.randint(1, len(jobs))) if jobs else []


def check_equal(checkpoint: Path, results: list[Result], scoring: ScoringOptions) -> None:
    model = reference_model(checkpoint)
    for prompt, result in zip(make_prompts(), results, strict=True):
        # A request may end before its last compression takes effect.
        delays = [*result.delays, NUM_TOKENS]
        oracle = dense_generate(
            model, prompt, NUM_TOKENS, scoring, block_size=8, kv_budget=BUDGET, chunk=CHUNK, delays=delays
        )
        assert result.tokens == oracle.tokens
        assert len(result.kept) == len(oracle.kept_positions)
        for kept, layers in zip(result.kept, oracle.kept_positions, strict=True):
            assert torch.equal(kept, torch.stack(layers))


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("shadow_share", [0.0, 0.5])
@pytest.mark.parametrize(
    "scoring",
    [
        "default",
        "paper,window=8",
        "default,pin_share=0,observe=spread,window=6",
        "default,pin_share=0,observe=all,window=8,recent_share=0",
    ],
)
def test_preemption_and_swapping_change_no_token(
    checkpoint: Path, scoring: str, shadow_share: float, prefix_caching: bool
) -> None:
    options, numbers = parse_scoring(scoring), random.Random(scoring)
    engine = make_engine(checkpoint, 4 << 20, scoring=options, shadow_share=shadow_share, prefix_caching=prefix_caching)
    engine.before_plan, engine.finish_jobs = preempt_at_random(numbers, 0.05), some_of(numbers)
    results = engine.generate(make_prompts(), greedy(NUM_TOKENS))
    counters = engine.scheduler.counters
    assert 0 < counters.swaps < counters.preemptions
    check_equal(checkpoint, results, options)
    holdings = engine.scheduler.holdings
    for pool in (holdings.blocks, holdings.buffers, holdings.rows, holdings.host_blocks, holdings.host_slots):
        assert pool.num_used == 0


def test_without_host_memory_a_compressed_request_is_computed_as_a_longer_prompt(checkpoint: Path) -> None:
    """What was evicted cannot come back: prompt and tokens so far are computed, and compressed as a prompt is."""
    prompt, known = make_prompts()[1], 35
    scoring = ScoringOptions(pin_share=0.0)
    engine = make_engine(checkpoint, 0, shadow_share=0.0, plan_ahead=False, scoring=scoring)

    def once(scheduler: Scheduler) -> None:
        if not scheduler.counters.preemptions and len(engine.results[0].tokens) == known:
            scheduler.preempt([0])

    engine.before_plan = once
    (result,) = engine.generate([prompt], greedy(NUM_TOKENS))
    assert (result.metrics.preemptions, result.metrics.swaps) == (1, 0)
    model, options = reference_model(checkpoint), {"block_size": 8, "kv_budget": BUDGET, "chunk": CHUNK}
    before = dense_generate(model, prompt, known, scoring, **options)
    assert before.kept_positions
    after = dense_generate(model, prompt + before.tokens, NUM_TOKENS - known, scoring, **options)
    assert result.tokens == before.tokens + after.tokens


def test_host_memory_that_is_too_small_loses_nobody(checkpoint: Path) -> None:
    numbers = random.Random(3)
    engine = make_engine(checkpoint, 40_000)
    assert engine.pool.geometry.num_host_slots == 1
    engine.before_plan, engine.finish_jobs = preempt_at_random(numbers, 0.05), some_of(numbers)
    results = engine.generate(make_prompts(), greedy(NUM_TOKENS))
    assert all(len(result.tokens) == NUM_TOKENS for result in results)
    assert engine.scheduler.counters.swaps > 0
    assert any(result.metrics.preemptions > result.metrics.swaps for result in results if result.kept)


def test_under_pressure_nobody_is_compressed_while_there_is_room(checkpoint: Path) -> None:
    prompts, model = make_prompts(), reference_model(checkpoint)
    engine = make_engine(checkpoint, 0, pool_bytes=150_000, compress="pressure")
    (alone,) = engine.generate(prompts[:1], greedy(NUM_TOKENS))
    assert alone.tokens == dense_generate(model, prompts[0], NUM_TOKENS).tokens
    assert (alone.metrics.compressions, alone.metrics.peak_blocks) == (0, 9)
    several = engine.generate(prompts * 3, greedy(NUM_TOKENS))
    assert engine.scheduler.counters.compressions > 0
    # Each is compressed at whatever length it had when the blocks were wanted.
    assert any(length % 8 for result in several for length in result.lengths)
    undisturbed = [pair for pair in zip(prompts * 3, several, strict=True) if pair[1].metrics.preemptions == 0]
    assert any(result.kept for _, result in undisturbed)
    for prompt, result in undisturbed:
        delays = [*result.delays, NUM_TOKENS]
        oracle = dense_generate(
            model, prompt, NUM_TOKENS, block_size=8, kv_budget=BUDGET, lengths=result.lengths, delays=delays
        )
        assert result.tokens == oracle.tokens
        assert len(result.kept) == len(oracle.kept_positions)


def test_a_higher_class_takes_the_places_of_a_lower_one_which_goes_on_later(checkpoint: Path) -> None:
    prompts = make_prompts()
    engine = make_engine(checkpoint, 4 << 20, pool_bytes=110_000, shadow_share=0.0)
    eos = engine.decoder.config.eos_token_ids
    urgent = [
        TokenRequest(uid, prompts[uid], msgspec.structs.replace(greedy(NUM_TOKENS), priority=-1), eos)
        for uid in (3, 4, 5)
    ]

    def add_later(scheduler: Scheduler) -> None:
        if len(engine.step_sizes) == 50 and 3 not in engine.results:
            engine.results |= {request.uid: Result() for request in urgent}
            scheduler.add(urgent, 0.0)

    engine.before_plan = add_later
    engine.generate(prompts[:3], greedy(NUM_TOKENS))
    check_equal(checkpoint, [engine.results[uid] for uid in range(6)], ScoringOptions())
    assert engine.scheduler.counters.swaps > 0
    assert all(engine.results[uid].metrics.preemptions == 0 for uid in (3, 4, 5))
