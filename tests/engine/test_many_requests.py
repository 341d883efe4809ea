"""256 requests whose KV is four times the pool: all finish, each with the tokens that it has alone."""

import random
from pathlib import Path

import msgspec
import pytest
from in_process_engine import InProcessEngine, greedy
from tiny_models import tiny_checkpoint

from zipage.config import EngineConfig
from zipage.sampling_params import SamplingParams

NUM_REQUESTS = 256
BLOCK_SIZE = 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("many") / "qwen3", "qwen3")


def make_requests() -> tuple[list[list[int]], list[SamplingParams]]:
    numbers = random.Random(2)
    prompts = [numbers.choices(range(3, 128), k=numbers.randint(2, 20)) for _ in range(NUM_REQUESTS)]
    params = [msgspec.structs.replace(greedy(numbers.randint(20, 90)), priority=numbers.randint(0, 1)) for _ in prompts]
    return prompts, params


def run(checkpoint: Path, num_blocks: int, budget: int, max_num_seqs: int) -> InProcessEngine:
    config = EngineConfig(
        model=str(checkpoint),
        block_size=BLOCK_SIZE,
        kv_budget=budget,
        max_num_seqs=max_num_seqs,
        # What a request keeps must not depend on when its job is done.
        shadow_share=0.0,
        max_num_batched_tokens=512,
    )
    # Keys and values of two layers and two heads, with scores under a budget, and a little for the query slots.
    block_bytes = 2 * 2 * BLOCK_SIZE * (2 * 16 * 4 + 4 * bool(budget))
    engine = InProcessEngine.create(checkpoint, config, num_blocks * block_bytes, swap_bytes=1 << 20)
    prompts, params = make_requests()
    engine.generate(prompts, params)
    return engine


@pytest.mark.parametrize("budget", [0, 40])
def test_all_finish_and_none_is_wrong(checkpoint: Path, budget: int) -> None:
    prompts, params = make_requests()
    needs = [
        -(-(len(prompt) + each.max_tokens - 1) // BLOCK_SIZE) for prompt, each in zip(prompts, params, strict=True)
    ]
    roomy = run(checkpoint, 2 * sum(needs), budget, 32)
    crowded = run(checkpoint, sum(needs) // 4, budget, 256)
    assert crowded.scheduler.holdings.blocks.size <= sum(needs) // 4
    assert roomy.scheduler.counters.preemptions == 0
    # Under a budget nobody begins who would have to be preempted.
    assert (crowded.scheduler.counters.preemptions > 0) == (budget == 0)
    assert (crowded.scheduler.counters.compressions > 0) == (budget > 0)
    for uid, each in enumerate(params):
        assert crowded.results[uid].tokens == roomy.results[uid].tokens
        assert len(crowded.results[uid].tokens) == each.max_tokens
        assert crowded.results[uid].finish_reason == "length"
