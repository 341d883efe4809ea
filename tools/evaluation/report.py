"""What an evaluation leaves behind: a JSON file, a line for each answer beside it, and a table."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from tools.evaluation.intervals import CONFIDENCE
from tools.evaluation.plan import RecordedRun
from zipage.config import EngineConfig

COLUMNS = (
    ("policy", "<16"),
    ("budget", ">7"),
    ("questions", "<15"),
    ("tokens", ">7"),
    ("kept", ">7"),
    ("right", ">11"),
    ("share", ">22"),
    ("final answer", ">12"),
    ("against full KV", ">22"),
    ("compressions", ">12"),
    ("length", ">8"),
    ("tokens/s", ">9"),
)


class Report:
    """Facts that are written to a file after every run, and answers to a file beside it.

    `result.json` has everything but single answers; those are in `result.answers.jsonl`, one object a line with the
    run's policy and budget, the name of the questions and the number of the answer among them.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Begin both files anew; raises click.ClickException where they cannot be written."""
        self.facts: dict[str, Any] = {**facts, "runs": []}
        self._path = path
        self._answers = answers_file(path)
        try:
            self._answers.write_text("")
            self._write()
        except OSError as error:
            raise click.ClickException(f"--output {path}: {error}") from None

    def add(self, run: RecordedRun) -> None:
        """Keep one run."""
        self.facts["runs"].append(run.facts)
        self._write()
        named = {"policy": run.facts["policy"], "budget": run.facts["budget"]}
        with self._answers.open("a") as file:
            for questions, group in run.answers.items():
                for number, answer in enumerate(group):
                    file.write(json.dumps({**named, "questions": questions, "number": number, **answer}) + "\n")

    def _write(self) -> None:
        """A run that is cut off while it writes leaves the file of before."""
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.facts, indent=1) + "\n")
        unfinished.replace(self._path)


def answers_file(path: Path) -> Path:
    """The file of answers beside a file of results."""
    return path.with_suffix(".answers.jsonl")


def surroundings(config: EngineConfig, model: str | None, module: str) -> dict[str, Any]:
    """When, where, how and on which model `python -m module` was run; `model` is what the user has called it."""
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in ("zipage", "torch", "triton")},
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "model": model or Path(config.model).name,
        "confidence": CONFIDENCE,
    }


def table(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of text: a heading, and a line for the questions of every run that are reported together."""
    yield "  ".join(f"{name:{form}}" for name, form in COLUMNS)
    for run in runs:
        for name, group in run["groups"].items():
            values = _values(run, name, group)
            yield "  ".join(f"{value:{form}}" for value, (_, form) in zip(values, COLUMNS, strict=True))


def _values(run: Mapping[str, Any], name: str, group: Mapping[str, Any]) -> list[str]:
    return [
        run["policy"],
        run["budget"] or "",
        name,
        "" if group["budget"] is None else str(group["budget"]),
        "" if group["kept"] is None else str(group["kept"]),
        f"{group['right']}/{group['count']}",
        _estimate(group["share"]),
        f"{group['answer_share']['value']:.3f}" if "answer_share" in group else "",
        _estimate(group["ratio"]),
        f"{group['compressions_per_request']:.1f}",
        f"{group['mean_final_length']:.0f}",
        f"{run['output_tokens_per_second']:.0f}",
    ]


def _estimate(fields: Mapping[str, float] | None) -> str:
    return "" if fields is None else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**fields)
