"""Local JSONL files in the layouts of public data sets of mathematical problems.

| layout | fields |
|---|---|
| gsm8k | `question`, and `answer`, whose end is `#### 42` |
| math-500 | `problem`, and `answer` in LaTeX |
| amc23 | `problem` or `question`, and `answer`, text or a number |
| aime24 | `problem`, and `answer`, or a `solution` with a `\\boxed{}` answer |

Where a line has `unique_id` or `id`, that names the problem, else the number of the line does. Other fields are not
read. Empty lines are skipped.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tools.evaluation.answers import last_box, parse_expression

NAMES = ("unique_id", "id")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a line has its problem.

    Attributes:
        questions, answers: names of fields, of which the first that a line has is read.
        final_answer: the answer in such a field; `None` where there is none.
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    final_answer: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Problem:
    """Attributes:
    name: of the problem in its file.
    question: text.
    gold: the right answer, for `answers.is_right`.
    """

    name: str
    question: str
    gold: list[Any]


def _behind_hashes(text: str) -> str | None:
    _, separator, answer = text.rpartition("####")
    return answer.strip() if separator else None


def _boxed_or_whole(text: str) -> str | None:
    box = last_box(text)
    return text.strip() if box is None else box


LAYOUTS = {
    "gsm8k": Layout(("question",), ("answer",), _behind_hashes),
    "math-500": Layout(("problem",), ("answer",), str.strip),
    "amc23": Layout(("problem", "question"), ("answer",), str.strip),
    "aime24": Layout(("problem",), ("answer", "solution"), _boxed_or_whole),
}


def read_problems(path: Path, layout: Layout) -> list[Problem]:
    """All problems of a file, at least one.

    Raises:
        click.ClickException: the file cannot be read, or a line is not of the layout; names file, line and field.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path}: {error}") from None
    problems = list(_problems(path, lines, layout))
    if not problems:
        raise click.ClickException(f"{path}: there must be at least one problem, not none")
    return problems


def _problems(path: Path, lines: list[str], layout: Layout) -> Iterator[Problem]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _problem(line, str(number), layout)
            except ValueError as error:
                raise click.ClickException(f"{path}, line {number}: {error}") from None


def _problem(line: str, number: str, layout: Layout) -> Problem:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"must be an object, not {type(fields).__name__}")
    question, answer = _field(fields, layout.questions), _field(fields, layout.answers)
    if not isinstance(fields[question], str) or not fields[question].strip():
        raise ValueError(f"field {question} must be text that is not empty, not {fields[question]!r}")
    if isinstance(fields[answer], bool) or not isinstance(fields[answer], str | int | float):
        raise ValueError(f"field {answer} must be text or a number, not {fields[answer]!r}")
    final = layout.final_answer(str(fields[answer]))
    gold = parse_expression(final) if final else []
    if not gold:
        raise ValueError(f"field {answer} must have a final answer that can be parsed, not {fields[answer]!r}")
    name = next((str(fields[key]) for key in NAMES if key in fields), number)
    return Problem(name, fields[question], gold)


def _field(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    found = next((name for name in names if name in fields), None)
    if found is None:
        raise ValueError(f"field {' or '.join(names)} is missing; there are {', '.join(fields) or 'none'}")
    return found
