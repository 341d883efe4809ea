"""The dense oracle itself: against transformers, without eviction and with one that a mask can express."""

from pathlib import Path

import pytest
import torch
from dense_oracle import OracleResult, dense_generate
from tiny_models import FAMILIES, reference_model, tiny_checkpoint
from transformers import PreTrainedModel

from zipage.config import ScoringOptions

PROMPT = [5, 60, 17, 3, 41, 41, 8, 29, 11, 50, 2, 33, 7]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def model(directory: Path) -> PreTrainedModel:
    return reference_model(tiny_checkpoint(directory / "any", "qwen3"))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_budget_it_decodes_like_transformers(family, directory):
    model = reference_model(tiny_checkpoint(directory / family, family))
    ids = torch.tensor([PROMPT])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, eos_token_id=None, pad_token_id=0
    )
    result = dense_generate(model, PROMPT, 40)
    assert result == OracleResult(tokens=expected[0, len(PROMPT) :].tolist(), kept_positions=[])


def resident_positions(steps: int, prompt_length: int, sinks: int, budget: int, block_size: int) -> list[list[int]]:
    """For each position the positions it attends to, where the sinks and the most recent entries are kept."""
    resident: list[int] = []
    seen = []
    for position in range(prompt_length + steps):
        resident.append(position)
        seen.append(list(resident))
        if position >= prompt_length - 1 and len(resident) % block_size == 0 and len(resident) >= budget:
            keep = budget - block_size
            resident = resident[:sinks] + resident[len(resident) - (keep - sinks) :]
    return seen


@pytest.mark.parametrize("prompt_length", [1, 13, 16, 37])
def test_sinks_and_recent_entries_are_a_mask_in_transformers(prompt_length, model):
    """Every token is the one that transformers finds likeliest where a mask hides the evicted positions."""
    sinks, block_size, budget, steps = 3, 8, 16, 30
    prompt = (PROMPT * 3)[:prompt_length]
    keep = budget - block_size
    scoring = ScoringOptions(sinks=sinks, recent=keep - sinks, recent_share=0.0)
    result = dense_generate(model, prompt, steps, scoring, block_size, budget)
    seen = resident_positions(steps - 1, prompt_length, sinks, budget, block_size)
    mask = torch.full((1, 1, len(seen), len(seen)), torch.finfo(torch.float32).min)
    for position, visible in enumerate(seen):
        mask[0, 0, position, visible] = 0.0
    ids = torch.tensor([prompt + result.tokens[:-1]])
    with torch.inference_mode():
        logits = model(ids, attention_mask=mask).logits[0, prompt_length - 1 :]
    assert logits.argmax(-1).tolist() == result.tokens
    assert len(result.kept_positions) >= 2


@pytest.mark.parametrize(
    ("prompt_length", "resident_at_first"),
    [(1, 24), (23, 24), (24, 24), (25, 32), (32, 32), (33, 40)],
)
def test_compression_starts_when_the_last_of_enough_blocks_is_full(prompt_length, resident_at_first, model):
    """The prompt is never compressed before its end, and every later compression comes one block later."""
    block_size = 8
    num_tokens = resident_at_first - prompt_length + 2 * block_size + 2
    scoring = ScoringOptions(sinks=2, window=4, recent_share=0.5, pin_share=0.0)
    result = dense_generate(model, (PROMPT * 3)[:prompt_length], num_tokens, scoring, block_size, kv_budget=20)
    assert len(result.kept_positions) == 3
    for count, layers in enumerate(result.kept_positions):
        for positions in layers:
            assert positions.shape == (2, 16)
            assert (positions.diff(dim=1) > 0).all()
            assert (positions[:, :2] == torch.tensor([0, 1])).all()
            newest = resident_at_first + count * block_size - 1
            assert (positions[:, -8:] == torch.arange(newest - 7, newest + 1)).all()


def test_a_request_that_ends_is_not_compressed_any_more(model):
    scoring = ScoringOptions(sinks=2, window=4)
    tokens = dense_generate(model, PROMPT, 12, scoring, 8, 24).tokens
    assert len(dense_generate(model, PROMPT, 12, scoring, 8, 24).kept_positions) == 0
    assert len(dense_generate(model, PROMPT, 13, scoring, 8, 24).kept_positions) == 1
    first_repeat = tokens.index(tokens[5])
    stopped = dense_generate(model, PROMPT, 12, scoring, 8, 24, eos_ids=(tokens[5],))
    assert stopped.tokens == tokens[: first_repeat + 1]


def test_a_pinned_prompt_stays(model):
    scoring = ScoringOptions(sinks=2, window=4, recent=4, recent_share=0.0, pin_share=1.0)
    result = dense_generate(model, PROMPT, 60, scoring, 8, 32)
    assert len(result.kept_positions) > 3
    for layers in result.kept_positions:
        for positions in layers:
            assert (positions[:, : len(PROMPT)] == torch.arange(len(PROMPT))).all()


@pytest.mark.parametrize(
    ("observe", "queries"),
    [("last", [28, 29, 30, 31]), ("spread", [0, 8, 16, 24]), ("all", list(range(len(PROMPT) - 4, 32)))],
)
def test_first_survivors_are_what_transformers_attends_to(observe, queries, directory):
    """The attention of the observed queries, as transformers reports it, ranks what is neither sink nor recent."""
    model = reference_model(tiny_checkpoint(directory / f"eager-{observe}", "qwen3"))
    model.set_attn_implementation("eager")
    scoring = ScoringOptions(
        sinks=2, window=4, recent_share=0.0, anchor_share=0.0, reduce="mean", observe=observe, pin_share=0.0
    )
    result = dense_generate(model, PROMPT, 30, scoring, 8, 32)
    ids = torch.tensor([PROMPT + result.tokens[: 32 - len(PROMPT)]])
    with torch.inference_mode():
        attentions = model(ids, output_attentions=True).attentions
    for attention, positions in zip(attentions, result.kept_positions[0], strict=True):
        score = attention[0].unflatten(0, (2, -1)).amax(1)[:, queries].mean(1)
        score[:, [0, 1, 28, 29, 30, 31]] = 2.0
        assert torch.equal(positions, score.topk(24).indices.sort(dim=1).values)
