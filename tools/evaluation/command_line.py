"""From the options of `tools.evaluate` to what they mean."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from tools.bench_runs import parse_options
from tools.evaluation.questions import Suite
from tools.evaluation.synthetic import FamilySuite, draw
from zipage.bundled.tasks.families import FAMILIES

OPTIONS_OF_RUNS = ("model", "revision", "kv_budget", "scoring", "trace")
"""Fields of the engine's config that an evaluation sets itself, or that several engines cannot share."""


def engine_options(texts: tuple[str, ...]) -> dict[str, Any]:
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


def refuse_given(context: click.Context, names: tuple[str, ...], reason: str) -> None:
    """Raises click.UsageError where one of these parameters was given on the command line."""
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if parameter.name in names and given:
            raise click.UsageError(f"{parameter.opts[0]} {reason}")


def family_suite(seed: int, families: tuple[str, ...], prompts: int, shortest: int, longest: int) -> Suite[Any]:
    """Held-out prompts of these families, or of all.

    Raises:
        click.UsageError: the lengths are in the wrong order.
    """
    if shortest > longest:
        raise click.UsageError(f"--shortest must be in [150, {longest}] (--longest), not {shortest}")
    return FamilySuite({name: draw(name, prompts, shortest, longest, seed) for name in families or FAMILIES})


def dataset_suite(
    path: Path, chat: bool, seed: int, layout: str | None, samples: int, instruction: str | None, **sampling: Any
) -> Suite[Any]:
    """The problems of a file; `sampling` are further fields of `dataset.Asking`.

    Raises:
        click.ClickException: an option is missing or contradicts another, the file cannot be used, or math-verify is
            not installed.
        InvalidRequestError: a sampling field is outside its range.
    """
    # Imported here because the synthetic families do not need math-verify.
    try:
        from tools.evaluation.dataset import INSTRUCTION, Asking, DatasetSuite
        from tools.evaluation.dataset_files import LAYOUTS, read_problems
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error}: pip install -c constraints.txt -e '.[evaluate]' installs it") from None
    if layout is None:
        raise click.UsageError(f"--dataset needs --layout, one of {', '.join(LAYOUTS)}")
    if samples > 1 and not sampling["temperature"]:
        raise click.UsageError(f"--samples must be 1 at temperature 0, not {samples}")
    asking = Asking(chat, INSTRUCTION if instruction is None else instruction, samples, seed=seed, **sampling)
    return DatasetSuite(layout, read_problems(path, LAYOUTS[layout]), asking)
