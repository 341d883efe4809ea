"""Accuracy and speed of eviction policies under KV budgets, through the engine, beside full KV.

    python -m tools.evaluate --model DIR --option block_size=64 --output result.json
    python -m tools.evaluate --model DIR --policy paper --policy wide=default,window=64 --budget 512 --output FILE

The questions are prompts of the synthetic families, which have one right continuation each; an answer is right where
it is right to the last token. All questions of a run go to one engine at once. `tools.evaluation.report` describes the
files.
"""

from pathlib import Path

import click

from tools.bench_runs import parse_options
from tools.evaluation.budgets import parse_budget
from tools.evaluation.plan import Plan, check, evaluate
from tools.evaluation.policies import parse_policies
from tools.evaluation.report import Report, surroundings, table
from tools.evaluation.synthetic import FamilySuite, draw
from tools.reasoning.families import FAMILIES
from zipage.errors import ZipageError

OPTIONS_OF_RUNS = ("model", "revision", "kv_budget", "scoring", "trace")
"""Fields of the engine's config that an evaluation sets itself, or that several engines cannot share."""


@click.command()
@click.option("--model", help="A directory or a hub id [the bundled model].")
@click.option("--family", "families", multiple=True, type=click.Choice(list(FAMILIES)), help="Repeatable [all].")
@click.option("--prompts", default=256, show_default=True, type=click.IntRange(1), help="Of each family.")
@click.option("--shortest", default=2000, show_default=True, type=click.IntRange(150), help="Reasoning, in characters.")
@click.option("--longest", default=6000, show_default=True, type=click.IntRange(150), help="Reasoning, in characters.")
@click.option("--seed", default=0, show_default=True, help="Of the prompts.")
@click.option(
    "--policy", "policies", multiple=True, default=("default", "paper", "recency"), show_default=True,
    help="A name that tools.evaluation.policies has, or NAME=SCORING; repeatable.",
)  # fmt: skip
@click.option(
    "--budget", "budgets", multiple=True, default=("25%", "15%"), show_default=True,
    help="Tokens, or a share of the mean final length, rounded up to whole blocks; repeatable.",
)  # fmt: skip
@click.option("--no-full", is_flag=True, help="Leave out full KV, and with it all comparisons.")
@click.option("--option", "options", multiple=True, help="FIELD=JSON of the engine's config; repeatable.")
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
def main(
    model: str | None,
    families: tuple[str, ...],
    prompts: int,
    shortest: int,
    longest: int,
    seed: int,
    policies: tuple[str, ...],
    budgets: tuple[str, ...],
    no_full: bool,
    options: tuple[str, ...],
    output: Path,
) -> None:
    """Measure accuracy by family, policy and budget."""
    if shortest > longest:
        raise click.UsageError(f"--shortest must be in [150, {longest}] (--longest), not {shortest}")
    suite = FamilySuite({name: draw(name, prompts, shortest, longest, seed) for name in families or FAMILIES})
    plan = Plan(model, engine_options(options), parse_policies(policies), list(map(parse_budget, budgets)), not no_full)
    try:
        check(suite, plan)
        settings = {"prompts": prompts, "shortest": shortest, "longest": longest, "seed": seed}
        report = Report(output, surroundings(plan.config(), "tools.evaluate") | {"questions": settings})
        evaluate(suite, plan, report.add)
    except ZipageError as error:
        raise click.ClickException(str(error)) from None
    click.echo("\n".join(table(report.facts["runs"])))


def engine_options(texts: tuple[str, ...]) -> dict[str, object]:
    """Fields of the engine's config.

    Raises:
        click.UsageError: a text is not FIELD=JSON, or the field is not for `--option`.
    """
    try:
        options = parse_options(texts)
    except ValueError as error:
        raise click.UsageError(f"--option: {error}") from None
    for field in OPTIONS_OF_RUNS:
        if field in options:
            raise click.UsageError(f"--option {field}: an evaluation sets this itself, or cannot have it")
    return options


if __name__ == "__main__":
    main()
