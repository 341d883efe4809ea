"""Prompts of the synthetic families, and answers that are right to the last token or not."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import numpy as np

from tools.evaluation.intervals import paired_ratio, share
from tools.evaluation.questions import Effort, Questions, effort_facts, length_limit
from tools.reasoning.encoding import Document, encode
from tools.reasoning.vocabulary import TOKEN_IDS
from zipage import InvalidRequestError, SamplingParams
from zipage.bundled.tasks.example import END_THINK, Example
from zipage.bundled.tasks.families import FAMILIES
from zipage.client_requests import Conversation
from zipage.config import EngineConfig
from zipage.results import RequestOutput
from zipage.text.model_text import load_model_text

SLACK_SHARE, LEAST_SLACK = 0.1, 64
"""How many tokens an answer may be longer than the right one before it is cut off."""


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, and the chat that training would make of it."""

    example: Example
    document: Document

    @property
    def conversation(self) -> Conversation:
        return self.example.messages

    @property
    def expected(self) -> np.ndarray:
        """The right answer's tokens, the end token last; `[T]` uint8."""
        return self.document.token_ids[self.document.prompt_length :]


@dataclass(frozen=True, slots=True)
class FamilyAnswer:
    """One answer.

    Attributes:
        exact: every token is right, to the end.
        answer: what follows `</think>` is right, and the end token comes right behind it.
        first_wrong: the place of the first wrong token of the output, its length where it stops too early; `None`
            where the answer is exact.
        effort: lengths and compressions.
    """

    exact: bool
    answer: bool
    first_wrong: int | None
    effort: Effort


def draw(family: str, count: int, shortest: int, longest: int, seed: int) -> list[Task]:
    """Tasks that no training draws, with reasoning of about `shortest` to `longest` characters.

    The first ones do not depend on `count`.
    """
    rng = random.Random(f"{seed} evaluate {family}")
    examples = (FAMILIES[family](rng, rng.randint(shortest, longest)) for _ in range(count))
    return [Task(example, encode(example)) for example in examples]


def judge(expected: np.ndarray, output: Sequence[int], effort: Effort) -> FamilyAnswer:
    """Compare output tokens with the right ones, `[T]`."""
    tokens = np.asarray(output, dtype=np.int64)
    common = min(len(tokens), len(expected))
    differ = np.flatnonzero(tokens[:common] != expected[:common])
    first_wrong = int(differ[0]) if len(differ) else common
    exact = first_wrong == len(tokens) == len(expected)
    answer = np.array_equal(_final_answer(tokens), _final_answer(expected))
    return FamilyAnswer(exact, answer, None if exact else first_wrong, effort)


def _final_answer(tokens: np.ndarray) -> np.ndarray:
    """From the first `</think>` on; empty where there is none, so no answer is equal to a right one."""
    ends = np.flatnonzero(tokens == TOKEN_IDS[END_THINK])
    return tokens[ends[0] :] if len(ends) else tokens[:0]


class FamilySuite:
    """Questions of synthetic families; implements `questions.Suite`."""

    def __init__(self, tasks: Mapping[str, Sequence[Task]]) -> None:
        """Greedy questions for tasks by family."""
        self._tasks = tasks
        self._questions = [_ask(family, drawn) for family, drawn in tasks.items()]

    @property
    def questions(self) -> Sequence[Questions]:
        return self._questions

    @property
    def answer_type(self) -> type[FamilyAnswer]:
        return FamilyAnswer

    def check(self, config: EngineConfig) -> None:
        """Raises click.ClickException where the model has another tokenizer, or answers would be too long for it."""
        directory, limit = Path(config.model), length_limit(config)
        tokenizer = load_model_text(directory).tokenizer
        for family, tasks in self._tasks.items():
            try:
                token_ids = tokenizer.encode_chat([dict(message) for message in tasks[0].conversation])
            except InvalidRequestError as error:
                raise click.ClickException(f"{directory}: {error}") from None
            if token_ids != tasks[0].document.token_ids[: tasks[0].document.prompt_length].tolist():
                raise click.ClickException(f"{directory} does not encode a prompt of {family} as the training does")
            longest = max(len(task.document.token_ids) for task in tasks)
            if longest > limit:
                raise click.ClickException(
                    f"{family}: a right answer has {longest} tokens, the model's limit is {limit}"
                )

    def grade(self, name: str, results: Sequence[RequestOutput]) -> list[FamilyAnswer]:
        """One answer for each prompt."""
        completions = [result.completions[0] for result in results]
        return [
            judge(task.expected, completion.token_ids, Effort.of(completion))
            for task, completion in zip(self._tasks[name], completions, strict=True)
        ]

    def summary(self, answers: Sequence[FamilyAnswer], full: Sequence[FamilyAnswer] | None) -> dict[str, Any]:
        """`share` of exact answers and its `ratio` to full KV; the same for what follows `</think>`."""
        facts: dict[str, Any] = {"count": len(answers)}
        for name, field in (("", "exact"), ("answer_", "answer")):
            right = [getattr(answer, field) for answer in answers]
            ratio = paired_ratio(right, [getattr(answer, field) for answer in full]) if full else None
            facts |= {
                f"{name}right": sum(right),
                f"{name}share": asdict(share(right)),
                f"{name}ratio": asdict(ratio) if ratio else None,
            }
        return facts | effort_facts([answer.effort for answer in answers])


def _ask(family: str, tasks: Sequence[Task]) -> Questions:
    lengths = [len(task.expected) for task in tasks]
    sampling = [
        SamplingParams(temperature=0.0, max_tokens=length + max(LEAST_SLACK, int(SLACK_SHARE * length)))
        for length in lengths
    ]
    mean_length = fmean(len(task.document.token_ids) for task in tasks)
    return Questions(family, [task.conversation for task in tasks], sampling, mean_length)
