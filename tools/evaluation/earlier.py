"""Full KV's answers from an earlier evaluation, so that further policies are compared without another run of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tools.evaluation.plan import RecordedRun
from tools.evaluation.policies import FULL_KV
from tools.evaluation.report import answers_file

NAMES_OF_QUESTIONS = "families"
"""The setting that may differ, because the prompts of a family do not depend on the others."""


def read_full(path: Path, model: str, settings: Mapping[str, Any], names: Sequence[str]) -> RecordedRun:
    """The run of full KV in a file of `report.Report`.

    Args:
        path: the file; its answers lie beside it.
        model, settings: what it must have been asked about, as `Report` has them.
        names: of the questions that are needed.

    Raises:
        click.ClickException: it is not such a file, or has other questions.
    """
    try:
        result = json.loads(path.read_text())
        lines = [json.loads(line) for line in answers_file(path).read_text().splitlines()]
        asked = {"model": result["model"], **result["questions"]}
        run = next(run for run in result["runs"] if run["policy"] == FULL_KV)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise click.ClickException(f"{path} has no run of {FULL_KV}: {type(error).__name__} {error}") from None
    for name, value in {"model": model, **settings}.items():
        # As JSON has it, without tuples.
        wanted = json.loads(json.dumps(value))
        if name != NAMES_OF_QUESTIONS and asked.get(name) != wanted:
            raise click.ClickException(f"{path} cannot be compared: {name} was {asked.get(name)!r}, not {wanted!r}")
    answers = {name: [line for line in lines if _is_full(line, name)] for name in names}
    missing = [name for name, group in answers.items() if len(group) != run["groups"].get(name, {}).get("count")]
    if missing:
        raise click.ClickException(f"{path} does not have all answers of {FULL_KV} to {', '.join(missing)}")
    groups = {name: run["groups"][name] for name in names}
    return RecordedRun({**run, "groups": groups, "copied_from": path.name}, answers)


def _is_full(line: Mapping[str, Any], name: str) -> bool:
    return bool(line["policy"] == FULL_KV and line["questions"] == name)
