"""The evaluation from its command line, with real engines and a tiny model that has learned two prompts by heart."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

from tools import evaluate_pictures
from tools.evaluate import main
from tools.evaluation.earlier import read_full
from tools.evaluation.questions import from_record
from tools.evaluation.synthetic import FamilyAnswer, draw
from tools.reasoning.batches import BatchShape, stack
from tools.reasoning.checkpoint import export
from tools.reasoning.encoding import pack
from tools.reasoning.model import Reasoner, Shape
from tools.reasoning.trainer import Settings, Trainer
from zipage.bundled.tasks.families import FAMILIES

STEPS = 80
SIZES = "--prompts 2 --shortest 150 --longest 150 --family machine"
ENGINE = (
    "--option device=cpu --option threads=1 --option kv_cache_gb=0.05 --option max_num_seqs=8 --option block_size=8"
)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(scope="module")
def by_heart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [task.document for task in draw("machine", 2, 150, 150, seed=0)]
    length = sum(len(document.token_ids) for document in documents)
    shape = Shape(layers=1, hidden=128, intermediate=256)
    trainer = Trainer(Settings(shape, BatchShape(1, length, STEPS), 0.01, seed=0), torch.device("cpu"))
    batch = stack([pack(documents, length)])
    for _ in range(STEPS):
        trainer.train(batch)
    directory = tmp_path_factory.mktemp("by-heart")
    export(trainer.model, directory)
    return directory


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("untrained")
    export(Reasoner(Shape(layers=1, hidden=32, intermediate=32)), directory)
    return directory


def test_full_kv_is_exact_and_a_small_budget_is_compared_with_it(by_heart: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = f"--model {by_heart} --output {output} --policy recency --budget 50% {SIZES} {ENGINE}"
    result = invoke(*arguments.split())
    assert result.exit_code == 0, result.output
    facts = json.loads(output.read_text())
    full, recency = facts["runs"]
    machine = full["groups"]["machine"]
    assert (full["policy"], full["budget"], machine["budget"]) == ("full KV", None, None)
    assert (machine["right"], machine["count"], machine["answer_right"], machine["ratio"]) == (2, 2, 2, None)
    assert machine["finish_reasons"] == {"stop": 2}
    budgeted = recency["groups"]["machine"]
    assert (recency["policy"], recency["budget"]) == ("recency", "50%")
    half = machine["mean_final_length"] / 2
    assert half <= budgeted["budget"] < half + 8
    assert budgeted["kept"] == budgeted["budget"] - 8
    assert budgeted["compressions_per_request"] > 5
    assert budgeted["ratio"]["value"] == budgeted["share"]["value"]
    assert recency["scoring_options"]["redundancy_temperature"] == 1e30
    assert recency["output_tokens_per_second"] > 0
    check_answers(output.with_suffix(".answers.jsonl"))
    lines = result.output.splitlines()
    assert lines[0].split()[0] == "policy"
    assert [line.split("  ")[0] for line in lines[1:]] == ["full KV", "recency"]
    check_picture(output, tmp_path / "picture.png")
    check_full_kv_can_be_compared_again(output)


def check_answers(path: Path) -> None:
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(answer["policy"], answer["budget"], answer["number"]) for answer in answers] == [
        ("full KV", None, 0), ("full KV", None, 1), ("recency", "50%", 0), ("recency", "50%", 1),
    ]  # fmt: skip
    for answer in answers:
        assert answer["exact"] == (answer["first_wrong"] is None)
        assert answer["questions"] == "machine"
        assert answer["prompt_tokens"] > 40
    assert answers[0]["exact"]


def check_full_kv_can_be_compared_again(path: Path) -> None:
    facts = json.loads(path.read_text())
    model, settings = facts["model"], facts["questions"]
    full = read_full(path, model, settings | {"families": ("machine", "ledger")}, ["machine"])
    assert full.facts == facts["runs"][0] | {"copied_from": "result.json"}
    answers = [from_record(FamilyAnswer, record) for record in full.answers["machine"]]
    assert [(answer.exact, answer.effort.finish_reason) for answer in answers] == [(True, "stop")] * 2
    with pytest.raises(click.ClickException, match="seed was 0, not 1"):
        read_full(path, model, settings | {"seed": 1}, ["machine"])
    with pytest.raises(click.ClickException, match="model was"):
        read_full(path, "other", settings, ["machine"])
    with pytest.raises(click.ClickException, match="does not have all answers of full KV to ledger"):
        read_full(path, model, settings, ["machine", "ledger"])


def check_picture(result: Path, picture: Path) -> None:
    drawn = CliRunner().invoke(evaluate_pictures.main, [str(result), str(result), str(picture)])
    assert drawn.exit_code == 0, drawn.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_data_set_whose_budget_is_a_share_of_measured_lengths(untrained: Path, tmp_path: Path) -> None:
    dataset, output = tmp_path / "problems.jsonl", tmp_path / "result.json"
    lines = [{"question": f"What is {number} + 1?", "answer": f"#### {number + 1}"} for number in range(2)]
    dataset.write_text("\n".join(map(json.dumps, lines)))
    arguments = f"--model {untrained} --output {output} --policy paper --budget 50% {ENGINE}".split()
    asked = f"--dataset {dataset} --layout gsm8k --samples 2 --max-tokens 60 --instruction Go.".split()
    result = invoke(*arguments, *asked)
    assert result.exit_code == 0, result.output
    full, paper = (run["groups"]["gsm8k"] for run in json.loads(output.read_text())["runs"])
    assert (full["problems"], full["count"]) == (2, 4)
    assert set(full["pass_at"]) == {"1", "2"}
    half = full["mean_final_length"] / 2
    assert half <= paper["budget"] < half + 8
    assert paper["compressions_per_request"] > 0
    answers = [json.loads(line) for line in output.with_suffix(".answers.jsonl").read_text().splitlines()]
    assert [(answer["problem"], answer["sample"]) for answer in answers[:4]] == [("1", 0), ("1", 1), ("2", 0), ("2", 1)]
    assert len({answer["text"] for answer in answers[:4]}) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--budget 0%", "budget '0%' must be a share"),
        ("--policy nonsense", "policy 'nonsense' must be one of"),
        ("--shortest 900 --longest 800", "--shortest must be in [150, 800]"),
        ("--option kv_budget=64", "--option kv_budget"),
        ("--option block_size", "not FIELD=JSON"),
        ("--option blocksize=8", "did you mean block_size?"),
        ("--option block_size=7", "block_size must be one of"),
        ("--budget 16 --prompts 1", "policy default, budget 16, machine: kv_budget"),
        ("--full-from {file}", "file.jsonl has no run of full KV"),
        ("--full-from {file} --no-full", "--no-full and --full-from exclude each other"),
        ("--samples 4", "--samples needs --dataset"),
        ("--dataset {file}", "--dataset needs --layout"),
        ("--dataset {file} --layout gsm8k --prompts 5", "--prompts excludes --dataset"),
        ("--dataset {file} --layout gsm8k --samples 2 --temperature 0", "--samples must be 1 at temperature 0"),
        ("--dataset {file} --layout gsm8k", "problem 1: messages cannot be tokenized"),
        (
            "--dataset {file} --layout gsm8k --instruction Go. --option max_model_len=20",
            "problem 1 has 21 tokens; the limit of 20 leaves no room to answer",
        ),
        ("--dataset {file} --layout gsm8k --top-p 2", "top_p must be in (0, 1]"),
        ("--dataset {file} --layout aime24", "line 1: field problem is missing"),
        ("--dataset {file} --layout gsm8k --instruction Go. --no-full", "budget 25% needs the lengths of full KV"),
    ],
)
def test_bad_input_is_refused_before_an_engine_starts(
    untrained: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    file, output = tmp_path / "file.jsonl", tmp_path / "result.json"
    file.write_text(json.dumps({"question": "What is 1 + 1?", "answer": "#### 2"}))
    result = invoke("--model", str(untrained), "--output", str(output), *arguments.format(file=file).split())
    assert result.exit_code != 0
    assert message in " ".join(result.output.split()), result.output
    assert not output.exists()


def test_an_output_that_cannot_be_written_is_refused(untrained: Path, tmp_path: Path) -> None:
    result = invoke(
        "--model", str(untrained), "--budget", "64", "--output", str(tmp_path / "no" / "x.json"), *SIZES.split()
    )
    assert result.exit_code == 1
    assert "--output" in result.output


def group(right: int, budget: int | None) -> dict[str, Any]:
    value = right / 10
    share = {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}
    return {"budget": budget, "share": share, "mean_final_length": 4000.0}


def fake_result(scoring: str) -> dict[str, Any]:
    runs = [
        {
            "policy": policy,
            "budget": budget and str(budget),
            "scoring_options": {"observe": scoring} if budget else None,
            "output_tokens_per_second": 1000.0 + (budget or 0),
            "groups": {family: group(right, budget) for family in FAMILIES},
        }
        for policy, budget, right in [
            ("full KV", None, 10),
            ("paper", 1000, 6),
            ("default", 1000, 9),
            ("paper", 600, 4),
        ]
    ]
    return {"model": "made up", "device": "CPU", "versions": {"torch": "2"}, "runs": runs}


def test_results_of_several_files_are_drawn_together(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{number}.json") for number in range(2)]
    picture = tmp_path / "picture.png"
    for file, scoring in zip(files, ["last", "last"], strict=True):
        Path(file).write_text(json.dumps(fake_result(scoring)))
    drawn = CliRunner().invoke(evaluate_pictures.main, [*files, str(picture)])
    assert drawn.exit_code == 0, drawn.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    Path(files[1]).write_text(json.dumps(fake_result("all")))
    refused = CliRunner().invoke(evaluate_pictures.main, [*files, str(picture)])
    assert refused.exit_code == 2
    assert "policy paper must be the same in all results" in " ".join(refused.output.split())
