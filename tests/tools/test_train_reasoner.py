"""A toy training: it learns, it resumes, and its accuracy is that of greedy decoding."""

import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tools.reasoning.batches import Batch, BatchShape, TrainingBatches, load, stack
from tools.reasoning.encoding import IGNORED, encode, pack
from tools.reasoning.evaluation import Accuracy, held_out, measure
from tools.reasoning.model import Shape
from tools.reasoning.schedule import LONGEST, SHORTEST, learning_rate, longest_trace, trace_size
from tools.reasoning.tokenizer import build_tokenizer
from tools.reasoning.trainer import Settings, Trainer
from tools.train_reasoner import main
from zipage.bundled.tasks.families import FAMILIES
from zipage.text.model_text import load_model_text

TOY = Settings(Shape(layers=2, hidden=64, intermediate=128), BatchShape(rows=1, length=512, steps=30), 3e-3, seed=0)
CPU = torch.device("cpu")


def train(trainer: Trainer, last: int) -> list[float]:
    batches = load(TrainingBatches(TOY.batch, TOY.seed), trainer.step, workers=0, pin_memory=False)
    return [trainer.train(batch).item() for batch in islice(batches, last - trainer.step)]


def test_loss_falls() -> None:
    losses = train(Trainer(TOY, CPU), last=30)
    assert losses[0] == pytest.approx(np.log(96), rel=0.1)
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_resuming_is_going_on(tmp_path: Path) -> None:
    whole = Trainer(TOY, CPU)
    losses = train(whole, last=6)
    first = Trainer(TOY, CPU)
    assert train(first, last=3) == losses[:3]
    first.save(tmp_path)
    second = Trainer(TOY, CPU)
    second.resume(tmp_path)
    assert second.step == 3
    assert train(second, last=6) == losses[3:]
    assert all(torch.equal(*pair) for pair in zip(whole.model.parameters(), second.model.parameters(), strict=True))


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(TOY, CPU)
    train(trainer, last=1)
    trainer.save(tmp_path)
    other = Trainer(Settings(TOY.model, TOY.batch, 1e-3, seed=0), CPU)
    with pytest.raises(ValueError, match=r"peak_rate was 0.003, not 0.001"):
        other.resume(tmp_path)


def test_batches_do_not_depend_on_who_makes_them() -> None:
    batches = TrainingBatches(BatchShape(rows=2, length=512, steps=8), seed=1)
    alone = list(load(batches, 5, workers=0, pin_memory=False))
    helped = list(load(batches, 5, workers=2, pin_memory=False))
    assert len(alone) == len(helped) == 3
    for ours, theirs in zip(alone, helped, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert not torch.equal(alone[0].token_ids, alone[1].token_ids)


def test_rows_are_nearly_full_of_all_families() -> None:
    batch = TrainingBatches(BatchShape(rows=32, length=4096, steps=10), seed=0)[9]
    assert (batch.documents < 0).float().mean() < 0.06
    text = build_tokenizer().decode(batch.token_ids.flatten().tolist())
    for word in ("Run", "Branch", "Recur", "Ledger", "Multiply", "Weigh"):
        assert word in text


def test_traces_grow_to_the_longest() -> None:
    ceilings = [longest_trace(progress / 20) for progress in range(21)]
    assert ceilings == sorted(ceilings)
    assert ceilings[0] < 500
    assert ceilings[-1] == ceilings[10] == LONGEST
    sizes = [trace_size(random.Random(seed), 1.0) for seed in range(300)]
    assert min(sizes) >= SHORTEST
    assert max(sizes) > 0.95 * LONGEST


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(step, 4000, 1e-3) for step in range(4000)]
    assert rates[0] == pytest.approx(1e-3 / 200)
    assert max(rates) == rates[199] == pytest.approx(1e-3)
    assert rates[200:] == sorted(rates[200:], reverse=True)
    assert rates[-1] == pytest.approx(2e-5)


def oracle(batch: Batch) -> np.ndarray:
    """Predicts every next token of the row."""
    return np.roll(batch.token_ids.numpy(), -1, axis=1)


def test_a_right_model_is_measured_as_right() -> None:
    documents = held_out("machine", 7, 150, 400, seed=0)
    assert measure(oracle, documents, rows=2, length=700) == Accuracy(lines=1.0, answers=1.0)


def test_a_wrong_token_costs_its_line_and_its_answer() -> None:
    documents = [encode(FAMILIES["recurrence"](random.Random(seed), 300)) for seed in range(4)]
    wrong_place = documents[0].prompt_length + 30

    def predict(batch: Batch) -> np.ndarray:
        predicted = oracle(batch)
        predicted[0, wrong_place] += 1
        return predicted

    lines = sum(int((document.token_ids[document.prompt_length :] == 6).sum()) + 1 for document in documents)
    accuracy = measure(predict, documents, rows=2, length=1000)
    assert accuracy.answers == 0.75
    assert accuracy.lines == pytest.approx(1 - 1 / lines)


def test_a_wrong_token_of_the_prompt_costs_nothing() -> None:
    documents = held_out("ledger", 2, 200, 300, seed=0)

    def predict(batch: Batch) -> np.ndarray:
        predicted = oracle(batch)
        predicted[0, : documents[0].prompt_length - 1] = 0
        return predicted

    assert measure(predict, documents, rows=1, length=1000).answers == 1.0


def test_teacher_forcing_errs_first_where_greedy_decoding_does() -> None:
    document = encode(FAMILIES["machine"](random.Random(0), 150))
    batch = stack([pack([document], len(document.token_ids))])
    trainer = Trainer(TOY, CPU)
    for _ in range(40):
        trainer.train(batch)
    expected = document.token_ids[document.prompt_length :]
    forced = trainer.predict(batch)[0, document.prompt_length - 1 : -1]
    first_wrong = int(np.argmax(forced != expected))
    assert first_wrong > 0
    tokens = document.token_ids[: document.prompt_length].tolist()
    for _ in range(first_wrong + 1):
        tokens.append(int(trainer.predict(alone(tokens))[0, -1]))
    greedy = tokens[document.prompt_length :]
    assert greedy[:-1] == expected[:first_wrong].tolist()
    assert greedy[-1] == forced[first_wrong] != expected[first_wrong]


def alone(tokens: list[int]) -> Batch:
    """A batch of one document, of which nothing is learned."""
    row = torch.tensor([tokens], dtype=torch.uint8)
    positions = torch.arange(len(tokens), dtype=torch.int32)[None]
    return Batch(row, torch.zeros_like(positions), positions, torch.full(row.shape, IGNORED))


def test_command_trains_resumes_and_writes_a_checkpoint(tmp_path: Path) -> None:
    sizes = "--rows 1 --length 512 --layers 1 --hidden 32 --workers 0 --evaluate-every 2 --final-prompts 2 --steps 4"
    arguments = ["--output", str(tmp_path), *sizes.split()]
    assert CliRunner().invoke(main, [*arguments, "--minutes", "0"]).exit_code == 0
    assert CliRunner().invoke(main, [*arguments, "--resume"]).exit_code == 0
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "accuracy" in record] == [2, 4, 4]
    assert set(records[-1]["accuracy"]) == set(FAMILIES)
    assert any(record.get("loss", 9.0) < 5.0 for record in records)
    assert load_model_text(tmp_path).vocab_size == 96


def test_command_refuses_to_resume_from_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--output", str(tmp_path), "--resume"])
    assert result.exit_code == 1
    assert "training_state.safetensors" in result.output
