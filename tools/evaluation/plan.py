"""The runs of an evaluation: full KV first, then every policy with every budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from tools.evaluation.budgets import Budget, ResidentEntries
from tools.evaluation.engine_run import ask
from tools.evaluation.policies import FULL_KV, Policy
from tools.evaluation.questions import Answer, Suite, from_record, to_record
from zipage.config import EngineConfig, parse_scoring
from zipage.errors import ConfigError
from zipage.llm import make_config

Records = Mapping[str, Sequence[Mapping[str, Any]]]
"""Answers as JSON by the name of their questions."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One engine's facts and answers, all JSON."""

    facts: Mapping[str, Any]
    answers: Records


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        model: a directory or a hub id; `None` is the bundled model.
        options: fields of `EngineConfig`, but for `kv_budget` and `scoring`.
        policies, budgets: all pairs of them are run.
        full: run full KV before them, or have its answers from an earlier evaluation.
    """

    model: str | None
    options: Mapping[str, Any]
    policies: Sequence[Policy]
    budgets: Sequence[Budget]
    full: bool

    def config(self, scoring: str = "default", kv_budget: int = 0) -> EngineConfig:
        """The config of an engine; raises ConfigError where an option is not valid."""
        return make_config(self.model, {**self.options, "scoring": scoring, "kv_budget": kv_budget})

    def pairs(self) -> list[tuple[Policy, Budget]]:
        """All pairs, budget by budget."""
        return [(policy, budget) for budget in self.budgets for policy in self.policies]

    def resident_entries(
        self, policy: Policy, budget: Budget, lengths: Mapping[str, float | None]
    ) -> dict[str, ResidentEntries]:
        """What the engine makes of a budget, by the name of the questions whose mean final lengths are given.

        Raises:
            ConfigError: the budget is too small for the policy.
            click.UsageError: a length is needed and not known.
        """
        entries = {}
        for name, length in lengths.items():
            try:
                config = self.config(policy.scoring, budget.for_length(length))
            except ConfigError as error:
                raise ConfigError(f"policy {policy.name}, budget {budget.text}, {name}: {error}") from None
            entries[name] = ResidentEntries.from_config(config)
        return entries


@dataclass(frozen=True)
class Engine:
    """One engine to run.

    Attributes:
        policy: what it evicts by.
        budget: as it was asked for; `None` for full KV.
        entries: what that is, by the name of the questions; empty for full KV.
    """

    policy: Policy
    budget: Budget | None
    entries: Mapping[str, ResidentEntries]

    def named(self) -> dict[str, Any]:
        """Policy and budget as they were asked for, and every scoring option, because presets may change."""
        options = msgspec.to_builtins(parse_scoring(self.policy.scoring)) if self.entries else None
        return {
            "policy": self.policy.name,
            "scoring": self.policy.scoring if self.entries else None,
            "scoring_options": options,
            "budget": self.budget.text if self.budget else None,
        }

    def facts(self, name: str) -> dict[str, int | None]:
        """`budget` and `kept` entries of the questions called `name`; `None` for full KV."""
        return asdict(self.entries[name]) if self.entries else {"budget": None, "kept": None}


def check(suite: Suite[Answer], plan: Plan) -> None:
    """Find what is wrong with model, options or budgets before the first engine is started.

    Raises:
        ConfigError, ModelError, click.ClickException: an option, the model, or a budget is not valid.
    """
    suite.check(plan.config())
    lengths = {questions.name: questions.mean_length for questions in suite.questions}
    for policy, budget in plan.pairs():
        measured_first = plan.full and budget.is_share
        known = {name: length for name, length in lengths.items() if length is not None or not measured_first}
        plan.resident_entries(policy, budget, known)


def evaluate(
    suite: Suite[Answer], plan: Plan, earlier: RecordedRun | None, record: Callable[[RecordedRun], None]
) -> None:
    """Run everything; `record` gets every run as soon as it has ended.

    Args:
        suite: the questions.
        plan: the runs.
        earlier: full KV's answers to the same questions; `None` to run it, where the plan says so.
        record: keeps a run.

    Raises:
        ConfigError, EngineError, click.ClickException: as for `check` and `ask`.
    """
    full: Mapping[str, Sequence[Answer]] = {}
    if earlier is not None:
        full = {
            name: [from_record(suite.answer_type, each) for each in group] for name, group in earlier.answers.items()
        }
        record(earlier)
    elif plan.full:
        full, facts = _run(suite, plan, Engine(Policy(FULL_KV, "default"), None, {}), {})
        record(_recorded(facts, full))
    lengths = mean_lengths(suite, full)
    for policy, budget in plan.pairs():
        engine = Engine(policy, budget, plan.resident_entries(policy, budget, lengths))
        answers, facts = _run(suite, plan, engine, full)
        record(_recorded(facts, answers))


def mean_lengths(suite: Suite[Answer], full: Mapping[str, Sequence[Answer]]) -> dict[str, float | None]:
    """Mean tokens of prompt and answer by the name of the questions: right answers, or else those of full KV."""
    lengths = {questions.name: questions.mean_length for questions in suite.questions}
    measured = {name: suite.summary(answers, None)["mean_final_length"] for name, answers in full.items()}
    return {name: measured.get(name) if length is None else length for name, length in lengths.items()}


def _run(
    suite: Suite[Answer], plan: Plan, engine: Engine, full: Mapping[str, Sequence[Answer]]
) -> tuple[dict[str, list[Answer]], dict[str, Any]]:
    """One engine's answers by the name of their questions, and its facts; `full` is empty where it did not run."""
    budgets = {name: entries.budget for name, entries in engine.entries.items()}
    options = {**plan.options, "scoring": engine.policy.scoring, "kv_budget": max(budgets.values(), default=0)}
    run = ask(plan.model, options, suite.questions, budgets)
    answers = {name: suite.grade(name, results) for name, results in run.results.items()}
    groups = {name: engine.facts(name) | suite.summary(graded, full.get(name)) for name, graded in answers.items()}
    return answers, engine.named() | {"engine_options": options} | run.facts | {"groups": groups}


def _recorded(facts: dict[str, Any], answers: Mapping[str, Sequence[Answer]]) -> RecordedRun:
    return RecordedRun(facts, {name: [to_record(answer) for answer in group] for name, group in answers.items()})
