"""Where the time of a run goes: a trace for Perfetto, figures, and a picture of one compression beside decoding.

    python -m tools.profile_pipeline run --output DIR
    python -m tools.profile_pipeline run --output DIR --model MODEL --random-tokens 256 --prompts 128 --max-tokens 2048
    python -m tools.profile_pipeline analyse TRACES --output DIR --from 10 --to 20

Written to the output directory: `trace.json`, `report.json` and `timeline.png`; by `run` also `traces/`, what each
process has written. docs/profiling.md explains the figures.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from tools.bundled_task import samples
from tools.tracing.chrome import write_chrome_trace
from tools.tracing.merge import EngineTrace, Window, read_trace_directory
from tools.tracing.picture import draw_timeline
from tools.tracing.report import Report, make_report
from tools.tracing.report_text import report_text
from zipage import LLM, SamplingParams
from zipage.client_requests import Conversation, Prompt
from zipage.errors import ZipageError
from zipage.models.config import load_model_config
from zipage.results import RequestOutput
from zipage.tracing import now

_WARM_UP_PROMPTS = 2
_CHARACTERS = 3000

Ask = Callable[..., list[RequestOutput]]
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Workload:
    """Requests that arrive together.

    Attributes:
        prompts: how many.
        random_tokens: length of prompts of random tokens, which are decoded to `max_tokens`; `None` is tasks of the
            bundled model as chat messages, whose answers may end before.
        max_tokens: of each answer.
    """

    prompts: int
    random_tokens: int | None
    max_tokens: int


def run_workload(workload: Workload, model: str, options: dict[str, Any]) -> Window:
    """Run a workload on an engine of its own, after a few requests to warm it up, which are not in the window.

    Args:
        model: a directory, a hub id, or `bundled`.
        options: fields of the engine's config, with `trace`.

    Raises:
        ZipageError: the engine does not start, ends, or refuses a prompt.
    """
    with LLM(model, **options) as llm:
        ask, prompts = make_prompts(workload, llm)
        sampling = SamplingParams(
            temperature=0.0, max_tokens=workload.max_tokens, ignore_eos=workload.random_tokens is not None
        )
        ask(prompts[:_WARM_UP_PROMPTS], sampling)
        start = now()
        results = ask(prompts, sampling, progress=True)
        end = now()
    for result in results:
        if result.error is not None:
            raise result.error
    return Window(start, end)


def make_prompts(workload: Workload, llm: LLM) -> tuple[Ask, Sequence[Prompt | Conversation]]:
    """How to send the prompts, and the same ones every time; random tokens are any of the model's."""
    if workload.random_tokens is None:
        return llm.chat, [task.messages for task in samples(workload.prompts, _CHARACTERS, seed=0)]
    generator = random.Random(0)
    vocab_size = load_model_config(Path(llm.config.model)).vocab_size
    return llm.generate, [
        [generator.randrange(vocab_size) for _ in range(workload.random_tokens)] for _ in range(workload.prompts)
    ]


def analyse_trace(trace: EngineTrace, window: Window, output: Path, picture_ms: float | None) -> Report:
    """Write `trace.json`, `report.json` and `timeline.png` of a part of a run, and return its figures."""
    output.mkdir(parents=True, exist_ok=True)
    report = make_report(trace, window)
    part = trace.inside(window)
    (output / "report.json").write_bytes(report.to_json())
    write_chrome_trace(part, trace.window.start, output / "trace.json")
    draw_timeline(part, trace.window.start, output / "timeline.png", picture_ms)
    return report


@dataclass(frozen=True)
class Analysis:
    """The options that both commands share.

    Attributes:
        output: directory to write to.
        first, last: seconds of the trace between which to analyse, negative ones from its end; `None` is no limit.
        picture_ms: width of the picture in milliseconds; `None` is some tens of steps.
    """

    output: Path
    first: float | None
    last: float | None
    picture_ms: float | None

    def write(self, traces: Path, workload: Window | None = None) -> None:
        """Analyse a trace directory; without limits that part of it in which a workload ran, if one did.

        Raises:
            ClickException: it is no trace of one engine, or nothing lies between the limits.
        """
        try:
            trace = read_trace_directory(traces)
            if workload is not None and self.first is None and self.last is None:
                window = trace.window.common(workload)
            else:
                window = trace.part(self.first, self.last)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        click.echo(report_text(analyse_trace(trace, window, self.output, self.picture_ms)))
        click.echo(f"\nwrote trace.json, report.json and timeline.png to {self.output}")


def _analysis_options(command: Command) -> Command:
    shared = (
        click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Directory."),
        click.option(
            "--from", "first", type=float, help="Analyse from here, in seconds of the trace; -S from its end."
        ),
        click.option("--to", "last", type=float, help="Analyse to here."),
        click.option("--window", "picture_ms", type=float, help="Milliseconds in the picture [some tens of steps]."),
    )
    for option in reversed(shared):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Analyse where the time of a run goes."""


@main.command()
@click.option("--model", default="bundled", show_default=True, help="A directory or a hub id.")
@click.option("--prompts", type=click.IntRange(1), default=16, show_default=True, help="Requests that arrive together.")
@click.option(
    "--random-tokens",
    type=click.IntRange(1),
    help="Prompts of so many random tokens [tasks of the bundled model as chat messages].",
)
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Of each answer.")
@click.option("--kv-budget", type=int, default=256, show_default=True, help="Tokens; 0 is no limit.")
@click.option("--option", "options", multiple=True, help="FIELD=JSON of the engine's config.")
@_analysis_options
def run(
    model: str,
    prompts: int,
    random_tokens: int | None,
    max_tokens: int,
    kv_budget: int,
    options: tuple[str, ...],
    **shared: Any,
) -> None:
    """Run a workload and analyse it; a warm-up before it is left out, unless --from or --to says what to analyse."""
    analysis = Analysis(**shared)
    directory = analysis.output / "traces"
    if any(directory.glob("*.jsonl")):
        raise click.UsageError(f"{directory} holds traces of an earlier run; choose another --output")
    engine = {"kv_budget": kv_budget} | dict(map(_parse_option, options)) | {"trace": str(directory)}
    try:
        window = run_workload(Workload(prompts, random_tokens, max_tokens), model, engine)
    except ZipageError as error:
        raise click.ClickException(str(error)) from None
    analysis.write(directory, window)


@main.command()
@click.argument("traces", type=click.Path(file_okay=False, exists=True, path_type=Path))
@_analysis_options
def analyse(traces: Path, **shared: Any) -> None:
    """Analyse TRACES, the directory that an engine was given as `--trace`."""
    Analysis(**shared).write(traces)


def _parse_option(text: str) -> tuple[str, Any]:
    field, separator, value = text.partition("=")
    try:
        if separator:
            return field, json.loads(value)
    except json.JSONDecodeError:
        pass
    raise click.UsageError(f"--option must be FIELD=JSON, not {text!r}")


if __name__ == "__main__":
    main()
