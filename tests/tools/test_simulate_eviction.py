"""The simulated eviction against dense attention with a mask, and its command."""

import json
import math
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from tools.reasoning import checkpoint
from tools.reasoning.anchors import anchor_scores
from tools.reasoning.batches import stack
from tools.reasoning.encoding import Document, pack
from tools.reasoning.evaluation import held_out
from tools.reasoning.eviction import Candidate, EvictionSimulator, Resident, evict
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

    candidate = Candidate(recent_share=1 - sinks / keep, anchor_share=0.0, decay=0.0, sinks=sinks, pin_share=0.0)
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


def plain_anchor_score(keys: list[torch.Tensor], valid: list[bool], rest: list[int]) -> list[float]:
    """Of the entries `rest` of one head."""
    half, quarter = len(keys[0]) // 2, len(keys[0]) // 4
    slow = [i for i in range(len(keys[0])) if i % half >= quarter]
    contents = [key[slow].double() for key in keys]
    lengths = [float(content.norm()) for content in contents]
    novelty = []
    for i in rest:
        later = [j for j in range(i + 1, len(keys)) if valid[j]]
        novelty.append(1 - max((float(contents[i] @ contents[j]) / lengths[i] / lengths[j] for j in later), default=-1))
    return [a + b for a, b in zip(standard([lengths[i] for i in rest]), standard(novelty), strict=True)]


def standard(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / max(deviation, 1e-6) for value in values]


def test_the_anchor_score_is_that_of_a_plain_loop():
    torch.manual_seed(5)
    keys = torch.randn(2, 3, 20, 16)
    valid = torch.rand(2, 3, 20) < 0.8
    rest = valid & (torch.arange(20) >= 4)
    scores = anchor_scores(keys, valid, rest)
    assert (scores.isfinite() == rest).all()
    for row in range(2):
        for head in range(3):
            chosen = rest[row, head].nonzero()[:, 0].tolist()
            expected = plain_anchor_score(list(keys[row, head]), valid[row, head].tolist(), chosen)
            torch.testing.assert_close(scores[row, head, chosen].tolist(), expected, rtol=1e-4, atol=1e-4)


def test_of_equal_keys_none_is_an_anchor():
    everything = torch.ones(1, 1, 6, dtype=torch.bool)
    scores = anchor_scores(torch.ones(1, 1, 6, 16), everything, everything & (torch.arange(6) < 5))
    torch.testing.assert_close(scores[0, 0, :5], torch.zeros(5), rtol=0, atol=0.5)


def resident_of(length: int, heads: int) -> Resident:
    """All say the same but entries 6, 9 and 13, the last the loudest; attention is to entries 8 to 12."""
    keys = torch.zeros(1, heads, length, 16)
    keys[..., 4] = 1 - 0.001 * torch.arange(length)
    for place, dimension, size in ((6, 5, 2.0), (9, 6, 3.0), (13, 7, 4.0)):
        keys[..., place, 4] = 0
        keys[..., place, dimension] = size
    resident = Resident.none(1, heads, 16)
    resident.append(keys, keys, torch.arange(length))
    resident.scores += 0.001 * torch.arange(length)
    resident.scores[..., 8:13] += 0.9
    return resident


def kept_positions(candidate: Candidate, kept: list[int], prompt: int) -> list[list[int]]:
    """Of 24 entries, those that each head keeps."""
    length = 24
    resident = resident_of(length, len(kept))
    evict(resident, candidate, torch.tensor(kept), torch.tensor([prompt]), length)
    heads = zip(resident.positions[0], resident.valid[0], strict=True)
    return [positions[valid].tolist() for positions, valid in heads]


def test_anchors_are_kept_ahead_of_attention():
    # Room for 8 behind the prompt: 4 recent entries, 3 or no anchors, and what attention chooses.
    with_anchors = Candidate(sinks=2, recent_share=0.5, anchor_share=0.375, pin_share=1.0)
    assert kept_positions(with_anchors, [12], 4) == [[0, 1, 2, 3, 6, 9, 12, 13, 20, 21, 22, 23]]
    assert kept_positions(Candidate(sinks=2, recent_share=0.5, anchor_share=0.0, pin_share=1.0), [12], 4) == [
        [0, 1, 2, 3, 9, 10, 11, 12, 20, 21, 22, 23],
    ]


def test_anchors_have_no_more_than_sinks_recent_entries_and_the_prompt_leave():
    # A room of 4: a share of 1 is 4 anchors, of which the 2 best find a place.
    candidate = Candidate(sinks=2, recent_share=0.5, anchor_share=1.0, pin_share=1.0)
    assert kept_positions(candidate, [8], 4) == [[0, 1, 2, 3, 9, 13, 22, 23]]


def test_the_room_is_what_the_prompt_leaves_but_a_quarter_at_least():
    kept, prompts = torch.tensor([100, 42]), torch.tensor([10, 90, 200])
    assert Candidate(pin_share=1.0).room(kept, prompts).tolist() == [[90, 32], [25, 10], [25, 10]]
    assert Candidate(pin_share=0.5).room(kept, prompts).tolist() == [[90, 32], [50, 21], [50, 21]]
    assert Candidate(pin_share=0.0).room(kept, prompts).tolist() == [[100, 42]] * 3


def test_the_recent_part_is_a_share_of_each_heads_room():
    # Rooms of 4 (of 14) and 3 (of 12, the floor), behind a prompt of 10, which gives way to recent entries.
    candidate = Candidate(sinks=0, recent_share=1.0, pin_share=1.0)
    prompt = list(range(10))
    assert kept_positions(candidate, [14, 12], 10) == [[*prompt, 20, 21, 22, 23], [*prompt[1:], 21, 22, 23]]


def test_candidates_are_parsed():
    assert parse_candidate("") == Candidate()
    expected = Candidate(decay=1.0, reduce="max", pin_share=0.0, head_shares={(1, 2): 1.0, (0, 3): 0.5})
    assert parse_candidate("anchor_share=0") == Candidate(anchor_share=0.0)
    assert parse_candidate("decay=1,reduce=max,pin_share=0,heads=1.2:1.0+0.3:0.5") == expected


@pytest.mark.parametrize(
    "text", ["colour=1", "decay=x", "anchor_share=x", "reduce=sum", "heads=1:1", "pin_share=x", "sinks=0.5"]
)
def test_bad_candidates_are_named(text):
    with pytest.raises(
        click.BadParameter,
        match="is not one of temperature, decay, recent_share, anchor_share, anchor_layers, pin_share = number",
    ):
        parse_candidate(text)


def test_the_command_writes_a_line_per_result(tmp_path: Path):
    torch.manual_seed(0)
    checkpoint.export(Reasoner(Shape()), tmp_path / "model")
    arguments = ["--model", tmp_path / "model", "--family", "machine", "--prompts", 1, "--shortest", 150]
    arguments += [
        "--longest",
        150,
        "--budget",
        50,
        "--candidate",
        "anchor_share=0.1",
        "--output",
        tmp_path / "results.jsonl",
    ]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert record["candidate"] == "anchor_share=0.1"
    assert (record["budget_percent"], record["family"], len(record["wrong_tokens"])) == (50.0, "machine", 1)
    assert "machine" in result.output
