"""Accuracy and speed of eviction policies under KV budgets, through the engine, beside full KV.

    python -m tools.evaluate --model DIR --option block_size=64 --option max_num_seqs=1024 --output result.json
    python -m tools.evaluate --model DIR --policy paper --policy wide=default,window=64 --budget 512 --output FILE
    python -m tools.evaluate --model MODEL --dataset FILE.jsonl --layout gsm8k --samples 4 --output FILE

Without a data set the questions are prompts of the synthetic families, which have one right continuation each; an
answer is right where it is right to the last token. `tools.evaluation.dataset_files` describes the files of data sets,
`tools.evaluation.report` those that are written. All questions of a run go to one engine at once.
"""

from pathlib import Path
from typing import Any

import click

from tools.evaluation.budgets import parse_budget
from tools.evaluation.command_line import dataset_suite, engine_options, family_suite, refuse_given
from tools.evaluation.earlier import read_full
from tools.evaluation.plan import Plan, check, evaluate
from tools.evaluation.policies import parse_policies
from tools.evaluation.questions import Suite
from tools.evaluation.report import Report, surroundings, table
from zipage.bundled.tasks.families import FAMILIES
from zipage.commands.chat import has_chat_template
from zipage.errors import ZipageError

FAMILY_OPTIONS = ("families", "prompts", "shortest", "longest")
DATASET_OPTIONS = ("layout", "samples", "temperature", "top_p", "max_tokens", "instruction")


@click.command()
@click.option("--model", help="A directory or a hub id [the bundled model].")
@click.option("--family", "families", multiple=True, type=click.Choice(list(FAMILIES)), help="Repeatable [all].")
@click.option("--prompts", default=256, show_default=True, type=click.IntRange(1), help="Of each family.")
@click.option("--shortest", default=2000, show_default=True, type=click.IntRange(150), help="Characters of reasoning.")
@click.option("--longest", default=6000, show_default=True, type=click.IntRange(150), help="Characters of reasoning.")
@click.option("--dataset", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A JSONL file.")
@click.option("--layout", type=click.Choice(["gsm8k", "math-500", "amc23", "aime24"]), help="Of the data set.")
@click.option("--samples", default=1, show_default=True, type=click.IntRange(1, 128), help="Answers to each problem.")
@click.option("--temperature", default=0.6, show_default=True, type=click.FloatRange(0), help="Of these; 0 is greedy.")
@click.option("--top-p", default=0.95, show_default=True, help="Of these.")
@click.option("--max-tokens", type=click.IntRange(1), help="Of these [as many as the model allows].")
@click.option("--instruction", help="Behind each problem [reason step by step, answer in a box]; may be empty.")
@click.option("--seed", default=0, show_default=True, help="Of prompts, or of sampling.")
@click.option(
    "--policy", "policies", multiple=True, default=("default", "paper", "recency"), show_default=True,
    help="A name that tools.evaluation.policies has, or NAME=SCORING; repeatable.",
)  # fmt: skip
@click.option(
    "--budget", "budgets", multiple=True, default=("25%", "15%"), show_default=True,
    help="Tokens, or a share of the mean final length, rounded up to whole blocks; repeatable.",
)  # fmt: skip
@click.option("--no-full", is_flag=True, help="Leave out full KV, and with it all comparisons.")
@click.option(
    "--full-from", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare with full KV as this earlier --output has it, instead of running it.",
)  # fmt: skip
@click.option("--option", "options", multiple=True, help="FIELD=JSON of the engine's config; repeatable.")
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
@click.pass_context
def main(
    context: click.Context,
    model: str | None,
    dataset: Path | None,
    seed: int,
    policies: tuple[str, ...],
    budgets: tuple[str, ...],
    no_full: bool,
    full_from: Path | None,
    options: tuple[str, ...],
    output: Path,
    **asked: Any,
) -> None:
    """Measure accuracy by policy and budget, on synthetic families or a data set."""
    if dataset is None:
        refuse_given(context, DATASET_OPTIONS, "needs --dataset")
    else:
        refuse_given(context, FAMILY_OPTIONS, "excludes --dataset")
    if no_full and full_from is not None:
        raise click.UsageError("--no-full and --full-from exclude each other")
    plan = Plan(model, engine_options(options), parse_policies(policies), list(map(parse_budget, budgets)), not no_full)
    settings = {name: asked[name] for name in (FAMILY_OPTIONS if dataset is None else DATASET_OPTIONS)}
    try:
        config = plan.config()
        suite: Suite[Any]
        if dataset is None:
            suite = family_suite(seed, **settings)
        else:
            suite = dataset_suite(dataset, has_chat_template(Path(config.model)), seed, **settings)
        check(suite, plan)
        facts = surroundings(config, model, "tools.evaluate")
        facts["questions"] = settings | {"dataset": dataset and dataset.name, "seed": seed}
        earlier = None
        if full_from is not None:
            names = [questions.name for questions in suite.questions]
            earlier = read_full(full_from, facts["model"], facts["questions"], names)
        report = Report(output, facts)
        evaluate(suite, plan, earlier, report.add)
    except ZipageError as error:
        raise click.ClickException(str(error)) from None
    click.echo("\n".join(table(report.facts["runs"])))


if __name__ == "__main__":
    main()
