"""The simulated eviction against dense attention with a mask, and its command."""

import json
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from tools.reasoning import checkpoint
from tools.reasoning.batches import stack
from tools.reasoning.encoding import Document, pack
from tools.reasoning.evaluation import held_out
from tools.reasoning.eviction import Candidate, EvictionSimulator
from tools.reasoning.model import Reasoner, Shape
from tools.reasoning.packed_attention import dense_attention, dense_mask
from tools.simulate_eviction import main, parse_candidate

BLOCK = 16
TINY = Shape(layers=2, hidden=32, intermediate=64, query_heads=4, kv_heads=2, head_dim=16)


@pytest.fixture(scope="module")
def model() -> Reasoner:
    torch.manual_seed(3)
    model = Reasoner(TINY).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 20
    return model


@pytest.fixture(scope="module")
def documents(model: Reasoner) -> list[Document]:
    """Whose answers are what the model says under full KV, but for some tokens."""
    drawn = held_out("machine", 3, 200, 400, 1)
    for document in drawn:
        predicted = dense(model, document, dense_mask)
        document.token_ids[document.prompt_length :] = predicted[document.prompt_length - 1 : -1]
    return drawn


def dense(model: Reasoner, document: Document, make_mask) -> torch.Tensor:
    """The most likely next token behind each one."""
    row = stack([pack([document], len(document.token_ids))])
    with torch.no_grad():
        logits = model(row.token_ids.long(), row.positions, dense_attention, make_mask(row.documents))
    return logits[0].argmax(-1)


def wrong_under(model: Reasoner, document: Document, make_mask) -> int:
    first, ids = document.prompt_length, torch.from_numpy(document.token_ids).long()
    return int((dense(model, document, make_mask)[first - 1 : -1] != ids[first:]).sum())


def test_without_eviction_the_model_is_the_dense_one(model, documents):
    wrong = EvictionSimulator(model, BLOCK).wrong_tokens(documents, Candidate(), 10_000)
    assert wrong == [wrong_under(model, document, dense_mask) for document in documents]


@pytest.mark.parametrize("sinks", [0, 3])
def test_recency_alone_is_a_sliding_window_of_blocks(model, documents, sinks):
    keep = 32

    def window(rows: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(rows.shape[1])
        oldest = positions // BLOCK * BLOCK - keep + torch.where(positions >= keep, sinks, 0)
        return dense_mask(rows) & ((positions >= oldest[:, None]) | (positions < sinks))

    candidate = Candidate(recent_share=1 - sinks / keep, decay=0.0, sinks=sinks, pin_prompt=False)
    wrong = EvictionSimulator(model, BLOCK).wrong_tokens(documents, candidate, keep)
    assert wrong == [wrong_under(model, document, window) for document in documents]
    assert wrong != EvictionSimulator(model, BLOCK).wrong_tokens(documents, Candidate(), 10_000)


def test_heads_with_shares_leave_the_others_less():
    kept = Candidate(head_shares={(1, 0): 0.2}).kept(100, 1000, 2, 2)
    assert kept.tolist() == [[66, 66], [200, 66]]
    with pytest.raises(ValueError, match="1 heads with shares keep 500 entries, others none"):
        Candidate(head_shares={(1, 0): 0.5}).kept(100, 1000, 2, 2)


def test_a_head_that_keeps_everything_attends_as_without_eviction(model, documents):
    everything = {(layer, head): 1.0 for layer in range(2) for head in range(2)}
    wrong = EvictionSimulator(model, BLOCK).wrong_tokens(documents, Candidate(head_shares=everything), 32)
    assert wrong == [wrong_under(model, document, dense_mask) for document in documents]


def test_candidates_are_parsed():
    assert parse_candidate("") == Candidate()
    expected = Candidate(decay=1.0, reduce="max", pin_prompt=False, head_shares={(1, 2): 1.0, (0, 3): 0.5})
    assert parse_candidate("decay=1,reduce=max,pin_prompt=false,heads=1.2:1.0+0.3:0.5") == expected


@pytest.mark.parametrize("text", ["colour=1", "decay=x", "reduce=sum", "heads=1:1", "pin_prompt=1", "sinks=0.5"])
def test_bad_candidates_are_named(text):
    with pytest.raises(click.BadParameter, match="is not one of temperature"):
        parse_candidate(text)


def test_the_command_writes_a_line_per_result(tmp_path: Path):
    torch.manual_seed(0)
    checkpoint.export(Reasoner(Shape()), tmp_path / "model")
    arguments = ["--model", tmp_path / "model", "--family", "machine", "--prompts", 1, "--shortest", 150]
    arguments += ["--longest", 150, "--budget", 50, "--output", tmp_path / "results.jsonl"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert (record["budget_percent"], record["family"], len(record["wrong_tokens"])) == (50.0, "machine", 1)
    assert "machine" in result.output
