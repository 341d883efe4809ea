"""Data sets of an evaluation: files in four layouts, answers that are compared, pass@k. The problems are made up."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from tools.evaluation.answers import is_right, last_box, parse_answer, parse_expression
from tools.evaluation.dataset import Asking, DatasetAnswer, DatasetSuite
from tools.evaluation.dataset_files import LAYOUTS, Problem, read_problems
from tools.evaluation.questions import from_record, to_record
from zipage import SamplingParams
from zipage.messages import RequestMetrics
from zipage.results import Completion, RequestOutput

LINES: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": "Ann has 3 bags of 14 nuts. How many nuts?", "answer": "3 * 14 = <<3*14=42>>42\n#### 42"}],
    "math-500": [
        {
            "problem": "Halve $\\frac{3}{4}$.",
            "solution": "unread",
            "answer": "\\frac{3}{8}",
            "subject": "Fractions",
            "level": 1,
            "unique_id": "made/up/1.json",
        }
    ],
    "amc23": [
        {"id": 7, "problem": "What is $6^2 - 1$?", "answer": 35.0, "url": "nowhere"},
        {"question": "And $6^2 + 1$?", "answer": "37"},
    ],
    "aime24": [
        {"id": 60, "problem": "Find $2^5 + 1$.", "solution": "$\\boxed{033}$, not $\\boxed{x}$.", "answer": "033"},
        {"problem": "Find $2^5 - 1$.", "solution": "\\boxed{31}"},
    ],
}  # fmt: skip
ANSWERS = {"gsm8k": ["42"], "math-500": ["0.375"], "amc23": ["35", "37"], "aime24": ["33", "31"]}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return path


def completion(text: str, index: int = 0, finish_reason: str = "stop") -> Completion:
    metrics = RequestMetrics(
        arrived=0.0, first_token=0.0, finished=0.0, prompt_tokens=5, output_tokens=7, compressions=2, peak_blocks=3,
        preemptions=0, swaps=0, stalled=0.0, shadow_stalled=0.0,
    )  # fmt: skip
    return Completion(index, text, [], None, finish_reason, None, metrics)


def of_texts(texts: list[str]) -> RequestOutput:
    return RequestOutput("x", [completion(text, index) for index, text in enumerate(texts)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    problems = read_problems(write(tmp_path / "file.jsonl", LINES[layout]), LAYOUTS[layout])
    assert [problem.question for problem in problems] == [
        line.get("problem", line.get("question")) for line in LINES[layout]
    ]
    for problem, answer in zip(problems, ANSWERS[layout], strict=True):
        assert is_right(problem.gold, parse_expression(answer))
        assert not is_right(problem.gold, parse_expression("7"))


def test_problems_have_names(tmp_path: Path) -> None:
    named = {layout: read_problems(write(tmp_path / "x", lines), LAYOUTS[layout]) for layout, lines in LINES.items()}
    assert [problem.name for problem in named["math-500"] + named["amc23"]] == ["made/up/1.json", "7", "2"]


@pytest.mark.parametrize(
    "layout, line, message",
    [
        ("gsm8k", "{", "line 2: Expecting"),
        ("gsm8k", "[1]", "line 2: must be an object, not list"),
        ("gsm8k", '{"problem": "a", "answer": "#### 1"}', "line 2: field question is missing; there are problem"),
        ("gsm8k", '{"question": "a", "answer": "1"}', "line 2: field answer must have a final answer"),
        ("gsm8k", '{"question": "a", "answer": "#### "}', "line 2: field answer must have a final answer"),
        ("amc23", '{"problem": " ", "answer": "1"}', "line 2: field problem must be text that is not empty"),
        ("amc23", '{"problem": "a", "answer": null}', "line 2: field answer must be text or a number, not None"),
        ("amc23", '{"problem": "a", "answer": true}', "line 2: field answer must be text or a number, not True"),
        ("aime24", '{"problem": "a"}', "line 2: field answer or solution is missing"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, layout: str, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(click.ClickException) as caught:
        read_problems(path, LAYOUTS[layout])
    assert f"{path}, {message}" in caught.value.message


def test_a_file_without_problems_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(click.ClickException, match="at least one problem"):
        read_problems(path, LAYOUTS["gsm8k"])
    path.write_bytes(b"\xff")
    with pytest.raises(click.ClickException, match="utf-8"):
        read_problems(path, LAYOUTS["gsm8k"])


def test_the_last_complete_box() -> None:
    assert last_box("\\boxed{1} and \\boxed{\\frac{2}{3}} and \\boxed{4") == "\\frac{2}{3}"
    assert last_box("nothing") is None


@pytest.mark.parametrize(
    "text, finished, right",
    [
        ("first \\boxed{3}, no: \\boxed{\\frac{1}{2}}", True, True),
        ("<think>\\boxed{3}</think>It is \\boxed{0.5}.", True, True),
        ("<think>\\boxed{0.5}</think>It is \\boxed{3}.", True, False),
        ("\\boxed{1/2} and then", False, True),
        ("The answer is 1/2.", True, True),
        ("The answer is 1/2 or", False, False),
        ("I do not know.", True, False),
    ],
)
def test_answers_are_found_and_compared(text: str, finished: bool, right: bool) -> None:
    assert is_right(parse_expression("\\frac12"), parse_answer(text, finished)) is right


def make_suite(samples: int) -> DatasetSuite:
    problems = [Problem(str(value), f"{value}?", parse_expression(str(value))) for value in (1, 2, 3)]
    return DatasetSuite("numbers", problems, Asking(chat=True, instruction="Go.", samples=samples, seed=5))


def test_every_problem_is_asked_for_samples_with_seeds_of_their_own() -> None:
    (questions,) = make_suite(4).questions
    assert questions.prompts[1] == [{"role": "user", "content": "2?\nGo."}]
    assert questions.sampling[1] == SamplingParams(n=4, temperature=0.6, top_p=0.95, seed=9)
    plain = Asking(chat=False, instruction="")
    assert plain.prompt(Problem("1", "How?", [])) == "How?"


def test_answers_that_cannot_be_parsed_are_wrong_and_counted() -> None:
    suite = make_suite(4)
    texts = (["\\boxed{1}"] * 4, ["\\boxed{2}", "2", "\\boxed{3}", "dunno"], ["dunno"] * 4)
    answers = suite.grade("numbers", [of_texts(group) for group in texts])
    all_right = suite.grade("numbers", [of_texts([f"\\boxed{{{number}}}"] * 4) for number in (1, 2, 3)])
    facts = suite.summary(answers, all_right)
    assert (facts["problems"], facts["count"], facts["right"], facts["unparsed"]) == (3, 12, 6, 5)
    assert facts["share"]["value"] == pytest.approx(0.5)
    assert facts["pass_at"] == pytest.approx({"1": 0.5, "2": (1 + 5 / 6) / 3, "4": 2 / 3})
    assert facts["ratio"] == pytest.approx({"value": 0.5, "low": 0.0, "high": 1.0})
    assert facts["compressions_per_request"] == 2
    record = to_record(answers[5])
    assert from_record(DatasetAnswer, record) == answers[5]
    assert (record["problem"], record["sample"], record["text"], record["right"]) == ("2", 1, "2", True)


def test_pass_at_k_of_one_sample() -> None:
    suite = make_suite(1)
    answers = suite.grade("numbers", [of_texts(["\\boxed{1}"])] * 3)
    facts = suite.summary(answers, answers)
    assert facts["pass_at"] == pytest.approx({"1": 1 / 3})
    assert facts["ratio"]["low"] < facts["ratio"]["value"] == 1.0 < facts["ratio"]["high"]
