"""The engine's greedy tokens against transformers' `generate`, prompt by prompt."""

from functools import cache
from pathlib import Path

import pytest
import torch
from in_process_engine import InProcessEngine, greedy
from tiny_models import FAMILIES, reference_model, tiny_checkpoint

from zipage.config import EngineConfig

NUM_TOKENS = 200
PROMPT_LENGTHS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33, 40, 47, 50)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / request.param, request.param)


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@cache
def reference_tokens(checkpoint: Path) -> list[list[int]]:
    """Each prompt alone, so that nothing depends on transformers' padding."""
    model = reference_model(checkpoint)
    outputs = []
    for prompt in make_prompts():
        ids = torch.tensor([prompt])
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
        outputs.append(generated[0, len(prompt) :].tolist())
    return outputs


@pytest.mark.parametrize("block_size", [8, 16, 64, 256])
@pytest.mark.parametrize("max_num_batched_tokens", [16, 37, 2048])
def test_greedy_tokens_are_equal(checkpoint: Path, block_size: int, max_num_batched_tokens: int) -> None:
    config = EngineConfig(
        model=str(checkpoint),
        block_size=block_size,
        max_num_seqs=16,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    engine = InProcessEngine.create(checkpoint, config)
    results = engine.generate(make_prompts(), greedy(NUM_TOKENS))
    assert [result.tokens for result in results] == reference_tokens(checkpoint)
    assert max(engine.step_sizes) <= max_num_batched_tokens


@pytest.mark.parametrize("block_size", [8, 32])
def test_preempted_requests_go_on_with_the_same_tokens(checkpoint: Path, block_size: int) -> None:
    config = EngineConfig(model=str(checkpoint), block_size=block_size, max_num_seqs=16, max_num_batched_tokens=64)
    # Room for about four of the sixteen sequences at their full length.
    engine = InProcessEngine.create(checkpoint, config, pool_bytes=4 * 256 * _bytes_per_token(checkpoint))
    results = engine.generate(make_prompts(), greedy(NUM_TOKENS))
    assert engine.scheduler.counters.preemptions > 0
    assert [result.tokens for result in results] == reference_tokens(checkpoint)


def _bytes_per_token(checkpoint: Path) -> int:
    config = reference_model(checkpoint).config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers * 2 * config.num_key_value_heads * head_dim * 4
