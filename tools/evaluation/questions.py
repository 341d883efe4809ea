"""What an engine is asked, and how answers are counted, whatever the questions are."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, TypeVar

import click

from zipage import SamplingParams
from zipage.client_requests import Conversation
from zipage.config import EngineConfig
from zipage.models.config import load_model_config
from zipage.results import Completion, RequestOutput

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions that are reported together: those of a family or a data set.

    Attributes:
        name: of the family or data set.
        prompts: all text, or all conversations, for a model with a chat template.
        sampling: for each prompt, without a budget.
        mean_length: mean tokens of prompt and right answer; `None` where the right answers are not known.
    """

    name: str
    prompts: Sequence[str | Conversation]
    sampling: Sequence[SamplingParams]
    mean_length: float | None


class Suite(Protocol[Answer]):
    """All questions of an evaluation, and what a right answer is."""

    @property
    def questions(self) -> Sequence[Questions]:
        """The same in every run."""
        ...

    def check(self, config: EngineConfig) -> None:
        """Refuse a model that cannot be asked; raises click.ClickException."""
        ...

    def grade(self, name: str, results: Sequence[RequestOutput]) -> list[Answer]:
        """One answer for each completion, in the order of the prompts of the questions called `name`."""
        ...

    def summary(self, answers: Sequence[Answer], full: Sequence[Answer] | None) -> dict[str, Any]:
        """Shares with their intervals as JSON, compared with the answers of full KV where there are any."""
        ...

    @property
    def answer_type(self) -> type[Answer]:
        """A data class with an `effort`, whose other fields are JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Effort:
    """What the engine has measured of one answer; lengths in tokens."""

    prompt_tokens: int
    output_tokens: int
    compressions: int
    peak_blocks: int
    finish_reason: str

    @classmethod
    def of(cls, completion: Completion) -> "Effort":
        metrics = completion.metrics
        if metrics is None or completion.finish_reason is None:
            raise RuntimeError(f"a completion without its measurements: {completion.finish_reason}")
        return cls(
            metrics.prompt_tokens,
            metrics.output_tokens,
            metrics.compressions,
            metrics.peak_blocks,
            completion.finish_reason,
        )


def to_record(answer: Any) -> dict[str, Any]:
    """An answer of a suite as a flat JSON object, with the fields of its effort."""
    own = asdict(answer)
    return own | own.pop("effort")


def from_record(answer_type: type[Answer], record: Mapping[str, Any]) -> Answer:
    """The answer that `to_record` made this of, which may have further fields.

    Raises:
        KeyError: a field is missing.
    """
    make: Callable[..., Answer] = answer_type
    effort = Effort(**{field.name: record[field.name] for field in fields(Effort)})
    names = [field.name for field in fields(answer_type) if field.name != "effort"]  # type: ignore[arg-type]
    return make(**{name: record[name] for name in names}, effort=effort)


def effort_facts(efforts: Sequence[Effort]) -> dict[str, Any]:
    """Means over answers, and how they have ended."""
    return {
        "mean_final_length": fmean(each.prompt_tokens + each.output_tokens for each in efforts),
        "mean_output_tokens": fmean(each.output_tokens for each in efforts),
        "compressions_per_request": fmean(each.compressions for each in efforts),
        "peak_blocks_of_a_request": max(each.peak_blocks for each in efforts),
        "finish_reasons": dict(Counter(each.finish_reason for each in efforts)),
    }


def length_limit(config: EngineConfig) -> int:
    """Most tokens of prompt and answer: the engine's limit or the model's."""
    limit = load_model_config(Path(config.model)).max_model_len
    return limit if config.max_model_len is None else min(limit, config.max_model_len)


def accepted(name: str, results: Sequence[RequestOutput]) -> Sequence[RequestOutput]:
    """The results, none of which was refused.

    Raises:
        click.ClickException: the engine has refused one.
    """
    for number, result in enumerate(results):
        if result.error is not None:
            raise click.ClickException(f"{name}: the engine refuses question {number}: {result.error}")
    return results
