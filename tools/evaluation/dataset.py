"""Problems of a data set, several sampled answers to each, and pass@k."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from tools.evaluation.answers import is_right, parse_answer
from tools.evaluation.dataset_files import Problem
from tools.evaluation.intervals import Estimate, clustered_share, paired_ratio, pass_at_k, resampled_ratio
from tools.evaluation.questions import Effort, Questions, effort_facts, length_limit
from zipage import InvalidRequestError, SamplingParams
from zipage.client_requests import Conversation
from zipage.config import EngineConfig
from zipage.results import Completion, RequestOutput
from zipage.text.model_text import load_model_text

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class Asking:
    """How problems are put to a model.

    Attributes:
        chat: as a user's message, for a model with a chat template; otherwise as text.
        instruction: a line behind the problem, or empty.
        samples: answers to each problem, 1 to 128.
        temperature, top_p, max_tokens: as in `SamplingParams`.
        seed: of the first answer to the first problem; every answer has one of its own.
    """

    chat: bool
    instruction: str = INSTRUCTION
    samples: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int | None = None
    seed: int = 0

    def prompt(self, problem: Problem) -> str | Conversation:
        """What the engine is sent."""
        text = f"{problem.question}\n{self.instruction}" if self.instruction else problem.question
        return [{"role": "user", "content": text}] if self.chat else text

    def sampling(self, index: int) -> SamplingParams:
        """For the problem of this index.

        Raises:
            InvalidRequestError: a field is outside its range.
        """
        return SamplingParams(
            n=self.samples,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            seed=self.seed + index * self.samples,
        )


@dataclass(frozen=True, slots=True)
class DatasetAnswer:
    """One of the answers to a problem.

    Attributes:
        problem: its name.
        sample: 0 for the first answer to it.
        right: equal to the right answer.
        parsed: there was an answer that could be parsed.
        text: all of it.
        effort: lengths and compressions.
    """

    problem: str
    sample: int
    right: bool
    parsed: bool
    text: str
    effort: Effort


class DatasetSuite:
    """Questions of one data set; implements `questions.Suite`."""

    def __init__(self, name: str, problems: Sequence[Problem], asking: Asking) -> None:
        self._problems = problems
        self._asking = asking
        prompts = [asking.prompt(problem) for problem in problems]
        self._questions = Questions(name, prompts, list(map(asking.sampling, range(len(problems)))), None)

    @property
    def questions(self) -> Sequence[Questions]:
        return [self._questions]

    @property
    def answer_type(self) -> type[DatasetAnswer]:
        return DatasetAnswer

    def check(self, config: EngineConfig) -> None:
        """Raises click.ClickException where a problem cannot be put to the model."""
        tokenizer, limit = load_model_text(Path(config.model)).tokenizer, length_limit(config)
        for problem, prompt in zip(self._problems, self._questions.prompts, strict=True):
            try:
                if isinstance(prompt, str):
                    token_ids = tokenizer.encode(prompt)
                else:
                    token_ids = tokenizer.encode_chat([dict(message) for message in prompt])
            except InvalidRequestError as error:
                raise click.ClickException(f"problem {problem.name}: {error}") from None
            if len(token_ids) >= limit:
                raise click.ClickException(
                    f"problem {problem.name} has {len(token_ids)} tokens; the limit of {limit} leaves no room to answer"
                )

    def grade(self, name: str, results: Sequence[RequestOutput]) -> list[DatasetAnswer]:
        """The answers to the first problem, then those to the next."""
        return [
            _judge(problem, completion)
            for problem, result in zip(self._problems, results, strict=True)
            for completion in result.completions
        ]

    def summary(self, answers: Sequence[DatasetAnswer], full: Sequence[DatasetAnswer] | None) -> dict[str, Any]:
        """`share` is pass@1, the mean over problems of their share of right answers."""
        counts, samples = self._right_counts(answers), self._asking.samples
        means = [right / samples for right in counts]
        ratio = self._ratio(counts, self._right_counts(full)) if full else None
        return {
            "problems": len(self._problems),
            "count": len(answers),
            "right": sum(counts),
            "share": asdict(clustered_share(means, samples)),
            "ratio": asdict(ratio) if ratio else None,
            "pass_at": {str(k): fmean(pass_at_k(right, samples, k) for right in counts) for k in _powers(samples)},
            "unparsed": sum(not answer.parsed for answer in answers),
        } | effort_facts([answer.effort for answer in answers])

    def _ratio(self, counts: Sequence[int], full: Sequence[int]) -> Estimate | None:
        """Of pass@1, from right answers to each problem."""
        if self._asking.samples == 1:
            return paired_ratio(list(map(bool, counts)), list(map(bool, full)))
        return resampled_ratio(counts, full)

    def _right_counts(self, answers: Sequence[DatasetAnswer]) -> list[int]:
        """Right answers to each problem."""
        samples = self._asking.samples
        groups = (answers[first : first + samples] for first in range(0, len(answers), samples))
        return [sum(answer.right for answer in group) for group in groups]


def _judge(problem: Problem, completion: Completion) -> DatasetAnswer:
    parsed = parse_answer(completion.text, completion.finish_reason == "stop")
    right = is_right(problem.gold, parsed)
    return DatasetAnswer(problem.name, completion.index, right, bool(parsed), completion.text, Effort.of(completion))


def _powers(samples: int) -> list[int]:
    """1, 2, 4 and so on up to the number of samples, and that number."""
    return [1 << power for power in range((samples - 1).bit_length())] + [samples]
