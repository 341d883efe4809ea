"""Prompts of the synthetic families, policies and budgets of an evaluation, without an engine."""

import json
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from tools.evaluation.budgets import Budget, parse_budget
from tools.evaluation.plan import Plan, check
from tools.evaluation.policies import POLICIES, parse_policies, parse_policy
from tools.evaluation.questions import Effort
from tools.evaluation.synthetic import FamilySuite, draw, judge
from tools.reasoning.checkpoint import export
from tools.reasoning.evaluation import held_out
from tools.reasoning.model import Reasoner, Shape
from zipage.bundled.tasks.families import FAMILIES
from zipage.config import parse_scoring
from zipage.errors import ConfigError
from zipage.eviction.scoring import RecordedQueries, score_layer
from zipage.eviction.selection import entry_tiers
from zipage.kernels.redundancy import combine
from zipage.kernels.reference import select_entries
from zipage.text.model_text import load_model_text

EFFORT = Effort(prompt_tokens=10, output_tokens=20, compressions=0, peak_blocks=2, finish_reason="stop")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    export(Reasoner(Shape(layers=1, hidden=32, intermediate=32)), path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_encoded_as_in_training(directory: Path, family: str) -> None:
    tokenizer = load_model_text(directory).tokenizer
    for task in draw(family, 3, 200, 600, seed=0):
        token_ids = tokenizer.encode_chat([dict(message) for message in task.conversation])
        assert token_ids == task.document.token_ids[: task.document.prompt_length].tolist()
        assert np.array_equal([*token_ids, *task.expected], task.document.token_ids)


def test_drawing_is_seeded_and_apart_from_the_training() -> None:
    tasks = draw("ledger", 4, 200, 400, seed=0)
    assert [task.example for task in draw("ledger", 2, 200, 400, seed=0)] == [task.example for task in tasks[:2]]
    prompts = {task.example.prompt for task in tasks}
    assert prompts.isdisjoint(task.example.prompt for task in draw("ledger", 4, 200, 400, seed=1))
    documents = [document.token_ids.tobytes() for document in held_out("ledger", 4, 200, 400, seed=0)]
    assert not any(task.document.token_ids.tobytes() in documents for task in tasks)


def test_an_exact_answer() -> None:
    (task,) = draw("machine", 1, 200, 200, seed=0)
    assert judge(task.expected, task.expected.tolist(), EFFORT).exact
    assert judge(task.expected, task.expected.tolist(), EFFORT).first_wrong is None


def test_the_first_wrong_token() -> None:
    (task,) = draw("machine", 1, 200, 200, seed=0)
    output = task.expected.tolist()
    output[30] = 300
    wrong = judge(task.expected, output, EFFORT)
    assert (wrong.exact, wrong.answer, wrong.first_wrong) == (False, True, 30)
    output[-2] += 1
    assert not judge(task.expected, output, EFFORT).answer
    for shorter in ([], task.expected[:40].tolist(), task.expected[:-1].tolist()):
        assert judge(task.expected, shorter, EFFORT).first_wrong == len(shorter)
        assert not judge(task.expected, shorter, EFFORT).answer
    longer = judge(task.expected, [*task.expected.tolist(), 7], EFFORT)
    assert (longer.exact, longer.answer, longer.first_wrong) == (False, False, len(task.expected))


def test_a_summary_counts_and_compares() -> None:
    suite = FamilySuite({"machine": draw("machine", 4, 200, 200, seed=0)})
    (task,) = draw("machine", 1, 200, 200, seed=0)
    right = judge(task.expected, task.expected.tolist(), EFFORT)
    wrong = judge(task.expected, [], EFFORT)
    facts = suite.summary([right, wrong, wrong, right], [right, right, right, right])
    assert (facts["count"], facts["right"], facts["answer_right"]) == (4, 2, 2)
    assert facts["share"]["value"] == facts["ratio"]["value"] == 0.5
    assert facts["mean_final_length"] == 30
    assert facts["finish_reasons"] == {"stop": 4}
    assert suite.summary([right] * 4, None)["ratio"] is None


def test_runaway_answers_end() -> None:
    tasks = draw("recurrence", 3, 200, 900, seed=0)
    (questions,) = FamilySuite({"recurrence": tasks}).questions
    for task, params in zip(tasks, questions.sampling, strict=True):
        assert params.max_tokens is not None
        assert len(task.expected) + 64 <= params.max_tokens <= 1.1 * len(task.expected) + 64
        assert params.temperature == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("nonsense", "must be one of default, paper, recency, random"),
        ("wide=paper,windw=32", "windw=32"),
        ("wide=paper,window=3", "window must be even, not 3"),
        ("paper,window=32", "not NAME=SCORING"),
        ("full KV=paper", "NAME of its own"),
    ],
)
def test_a_bad_policy_is_refused(text: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        parse_policy(text)


def test_policies_must_have_different_names() -> None:
    assert [policy.scoring for policy in parse_policies(["paper", "wide=paper,window=32"])][1] == "paper,window=32"
    with pytest.raises(click.BadParameter, match="several of paper"):
        parse_policies(["paper", "paper=default"])


@pytest.mark.parametrize("text", ["", "0", "-5", "12.5", "0%", "101%", "nan%", "half", "%"])
def test_a_bad_budget_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="share in \\(0%, 100%\\] or a number of tokens"):
        parse_budget(text)


def test_budgets_in_tokens_and_as_shares() -> None:
    assert parse_budget("512") == Budget("512", 512, is_share=False)
    assert parse_budget("512").for_length(None) == 512
    assert parse_budget("12.5%").for_length(1001.0) == 126
    with pytest.raises(click.UsageError, match="--no-full"):
        parse_budget("25%").for_length(None)


def make_plan(directory: Path, budget: str, **options: object) -> Plan:
    return Plan(str(directory), options, parse_policies(["paper"]), [parse_budget(budget)], full=True)


def test_every_family_has_a_budget_of_its_own_in_whole_blocks(directory: Path) -> None:
    plan = make_plan(directory, "25%", block_size=16)
    ((policy, budget),) = plan.pairs()
    entries = plan.resident_entries(policy, budget, {"machine": 1000.0, "ledger": 1025.0})
    assert (entries["machine"].budget, entries["machine"].kept) == (256, 240)
    assert (entries["ledger"].budget, entries["ledger"].kept) == (272, 256)


def test_a_budget_that_is_too_small_is_refused_before_anything_runs(directory: Path) -> None:
    suite = FamilySuite({"machine": draw("machine", 2, 200, 200, seed=0)})
    with pytest.raises(ConfigError, match="policy paper, budget 5%, machine: kv_budget"):
        check(suite, make_plan(directory, "5%", block_size=16))
    check(suite, make_plan(directory, "50%", block_size=16))


def test_answers_that_the_model_is_too_short_for_are_refused(directory: Path) -> None:
    suite = FamilySuite({"machine": draw("machine", 1, 400, 400, seed=0)})
    with pytest.raises(click.ClickException, match="machine: a right answer has 474 tokens, the model's limit is 300"):
        check(suite, make_plan(directory, "64", max_model_len=300))


@pytest.mark.parametrize("template, message", [("", "no chat template"), ("{{ messages[-1].content }}", "machine")])
def test_a_model_that_is_asked_otherwise_is_refused(
    directory: Path, tmp_path: Path, template: str, message: str
) -> None:
    other = tmp_path / "model"
    shutil.copytree(directory, other)
    file = other / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    suite = FamilySuite({"machine": draw("machine", 1, 200, 200, seed=0)})
    with pytest.raises(click.ClickException, match=message):
        check(suite, Plan(str(other), {}, [], [], full=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_named_policies_are_scorings(policy: str) -> None:
    parse_scoring(POLICIES[policy])


def test_recency_keeps_the_sinks_and_the_most_recent_entries() -> None:
    scoring = parse_scoring(POLICIES["recency"])
    torch.manual_seed(0)
    keys, queries = torch.randn(2, 80, 16), torch.randn(16, 4, 16)
    old_scores = torch.rand(2, 48)
    scores = score_layer(keys, RecordedQueries(queries, torch.arange(64, 80)), old_scores, scoring, block_size=16)
    tiers = entry_tiers(80, scoring.sinks, scoring.recent_entries(48, 0), 0)
    expected = [0, 1, 2, 3, *range(36, 80)]
    assert select_entries(scores.final, 48, tiers).tolist() == [expected, expected]
    final = torch.empty(1, 1, 2, 80)
    combine(
        torch.rand(1, 1, 2, 80), torch.randn(1, 1, 2, 80), torch.tensor([80]), scoring.redundancy_temperature,
        scoring.attention_weight, final,
    )  # fmt: skip
    assert (final == final[..., :1]).all()
