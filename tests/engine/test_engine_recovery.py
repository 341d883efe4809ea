"""Workers that die and come again change no token: the engine against undisturbed runs and the dense oracle."""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from dense_oracle import dense_generate
from in_process_engine import InProcessEngine, greedy
from tiny_models import reference_model, tiny_checkpoint

from zipage.config import EngineConfig, ScoringOptions
from zipage.engine_messages import Job
from zipage.scheduling.recovery import MAX_JOB_SENDS
from zipage.scheduling.scheduler import Scheduler

NUM_TOKENS = 60
BUDGET = 40
CHUNK = 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("recovery") / "qwen3", "qwen3")


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in (9, 30, 47, 100, 21, 64)]


def make_engine(checkpoint: Path, swap_bytes: int = 0, **options) -> InProcessEngine:
    config = EngineConfig(model=str(checkpoint), block_size=8, max_num_seqs=5, max_num_batched_tokens=CHUNK, **options)
    return InProcessEngine.create(checkpoint, config, pool_bytes=500_000, swap_bytes=swap_bytes)


def at_steps(engine: InProcessEngine, *events: tuple[int, Callable[[], None]]) -> Callable[[Scheduler], None]:
    """Do each thing once so many steps have returned."""
    left = list(events)

    def before_plan(scheduler: Scheduler) -> None:
        if left and len(engine.step_sizes) >= left[0][0]:
            left.pop(0)[1]()

    return before_plan


@pytest.mark.parametrize("plan_ahead", [True, False])
@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_after_a_lost_decode_worker_tokens_are_those_of_an_undisturbed_run(
    checkpoint: Path, plan_ahead: bool, prefix_caching: bool, temperature: float
) -> None:
    prompts = make_prompts()
    params = [
        msgspec.structs.replace(greedy(NUM_TOKENS), temperature=temperature, seed=seed, repetition_penalty=1.1)
        for seed in range(len(prompts))
    ]
    undisturbed = make_engine(checkpoint, plan_ahead=False).generate(prompts, params)
    engine = make_engine(checkpoint, plan_ahead=plan_ahead, prefix_caching=prefix_caching)
    num_blocks = engine.pool.geometry.num_blocks
    lost_sizes: list[int] = []

    def die(size: int) -> None:
        lost_sizes.append(len(engine.steps))
        engine.restart_workers(size)

    # In prompts, while all decode, and near the end; the pool gets smaller and larger.
    engine.before_plan = at_steps(
        engine, (3, lambda: die(num_blocks)), (40, lambda: die(num_blocks // 2)), (70, lambda: die(num_blocks + 5))
    )
    results = engine.generate(prompts, params)
    assert lost_sizes == [int(plan_ahead)] * 3
    assert engine.scheduler.counters.preemptions >= 3
    for result, expected in zip(results, undisturbed, strict=True):
        assert result.tokens == expected.tokens
        assert result.finish_reason == "length"
    assert engine.scheduler.holdings.blocks.size == num_blocks + 5
    assert engine.scheduler.holdings.blocks.num_used == 0


@pytest.mark.parametrize("shadow_share", [0.0, 0.5])
def test_a_compression_worker_that_dies_changes_no_token(checkpoint: Path, shadow_share: float) -> None:
    numbers = random.Random(shadow_share)
    engine = make_engine(checkpoint, 4 << 20, kv_budget=BUDGET, shadow_share=shadow_share)
    deaths: list[int] = []

    def disturb(scheduler: Scheduler) -> None:
        scheduler.preempt([request.uid for request in scheduler.lives.running if numbers.random() < 0.03])
        # A job that is sent too often fails.
        sends = [request.job.num_sends for request in scheduler.lives.at_work.values()]
        if sends and max(sends) < MAX_JOB_SENDS and numbers.random() < 0.2:
            deaths.append(len(engine.jobs))
            engine.restart_compression_worker()

    def some(jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if numbers.random() < 0.4]

    engine.before_plan, engine.finish_jobs = disturb, some
    prompts = make_prompts()
    results = engine.generate(prompts, greedy(NUM_TOKENS))
    assert len(deaths) >= 5
    assert engine.scheduler.counters.swaps > 0
    assert engine.scheduler.counters.failed_jobs == 0
    model = reference_model(checkpoint)
    for prompt, result in zip(prompts, results, strict=True):
        delays = [*result.delays, NUM_TOKENS]
        oracle = dense_generate(model, prompt, NUM_TOKENS, block_size=8, kv_budget=BUDGET, chunk=CHUNK, delays=delays)
        assert result.tokens == oracle.tokens
        for kept, layers in zip(result.kept, oracle.kept_positions, strict=True):
            assert torch.equal(kept, torch.stack(layers))


def test_a_compressed_request_whose_worker_dies_is_computed_as_a_longer_prompt(checkpoint: Path) -> None:
    prompt, known = make_prompts()[1], 35
    scoring = ScoringOptions(pin_share=0.0)
    engine = make_engine(checkpoint, kv_budget=BUDGET, shadow_share=0.0, plan_ahead=False, scoring=scoring)

    def die_once(scheduler: Scheduler) -> None:
        if not scheduler.counters.preemptions and len(engine.results[0].tokens) == known:
            engine.restart_workers(engine.pool.geometry.num_blocks)

    engine.before_plan = die_once
    (result,) = engine.generate([prompt], greedy(NUM_TOKENS))
    assert (result.metrics.preemptions, result.metrics.swaps) == (1, 0)
    model, options = reference_model(checkpoint), {"block_size": 8, "kv_budget": BUDGET, "chunk": CHUNK}
    before = dense_generate(model, prompt, known, scoring, **options)
    assert before.kept_positions
    after = dense_generate(model, prompt + before.tokens, NUM_TOKENS - known, scoring, **options)
    assert result.tokens == before.tokens + after.tokens
