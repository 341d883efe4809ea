"""Offline throughput: workloads with full KV and under budgets, in one run.

    python -m tools.bench --workload A --run 0:16 --run 512:128 --output result.json --picture result.png
    python -m tools.bench --workload B --run 1024:128 --run '1024:128@overlap=false' --trace traces --output result.json
    python -m tools.bench --workload A --model DIRECTORY --run 512:128:paper --output result.json

A run is BUDGET:BLOCK_SIZE[:SCORING][@FIELD=JSON;...]: the budget in tokens, 0 for full KV, and fields of the engine's
config. Every run starts an engine of its own and does all workloads, which have to agree in shape and pool. Prompts are
random tokens and outputs of a fixed length.
"""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from tools.bench_models import SHAPES
from tools.bench_pictures import draw_throughput
from tools.bench_runs import measure_run, model_directory, parse_options, parse_run
from tools.bench_workloads import WORKLOADS, Workload


@click.command()
@click.option("--workload", "names", multiple=True, type=click.Choice(list(WORKLOADS)), required=True, help="Requests.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="A model directory.")
@click.option("--random-weights", "shape", type=click.Choice(list(SHAPES)), help="A shape [the workload's].")
@click.option("--run", "runs", multiple=True, required=True, help="BUDGET:BLOCK_SIZE[:SCORING][@FIELD=JSON;...].")
@click.option("--requests", type=click.IntRange(1), help="Instead of the workload's number.")
@click.option("--output-tokens", type=click.IntRange(1), help="Instead of the workload's length.")
@click.option("--pool-gib", type=float, help="KV cache in GiB instead of the workload's.")
@click.option("--option", "options", multiple=True, help="FIELD=JSON of the engine's config, for every run.")
@click.option("--trace", type=click.Path(path_type=Path, file_okay=False), help="Traces, a directory for each run.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
@click.option("--picture", type=click.Path(path_type=Path), help="PNG file to draw.")
def main(
    names: tuple[str, ...],
    model: Path | None,
    shape: str | None,
    runs: tuple[str, ...],
    options: tuple[str, ...],
    trace: Path | None,
    output: Path,
    picture: Path | None,
    **changes: float | None,
) -> None:
    """Measure the offline throughput of workloads."""
    given = {field: value for field, value in changes.items() if value is not None}
    workloads = {name: _changed(WORKLOADS[name], shape, given) for name in names}
    if len({(workload.shape, workload.pool_gib) for workload in workloads.values()}) > 1:
        raise click.UsageError("all workloads of a run must have the same shape and pool")
    try:
        engines = [parse_run(run, parse_options(options)) for run in runs]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    result = _facts(workloads, model)
    with model_directory(model, workloads[names[0]].shape) as directory:
        for run in engines:
            result["runs"][run.name] = measured = measure_run(directory, workloads, run, trace)
            output.write_text(json.dumps(result, indent=1) + "\n")
            _print(run.name, measured["workloads"])
    if picture is not None:
        draw_throughput(result, picture)


def _changed(workload: Workload, shape: str | None, changes: Mapping[str, Any]) -> Workload:
    """The workload with other numbers, for which the reference was not measured."""
    fields = dict(changes) | ({"shape": shape} if shape else {})
    return replace(workload, **fields, reference=None) if fields else workload


def _facts(workloads: dict[str, Workload], model: Path | None) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", "-m", "tools.bench", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "workloads": {name: asdict(workload) for name, workload in workloads.items()},
        "model": model.name if model else "random weights",
        "versions": {package: version(package) for package in ("zipage", "torch", "triton")},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "runs": {},
    }


def _print(run: str, workloads: dict[str, dict[str, Any]]) -> None:
    for name, measured in workloads.items():
        against = f" ({measured['times_reference']:.2f} x vLLM)" if "times_reference" in measured else ""
        tpot = measured["tpot_ms"]
        click.echo(
            f"{name} {run}: {measured['output_tokens_per_second']:.0f} output tokens/s{against}, "
            f"{measured['ms_per_step']:.2f} ms a step of {measured['tokens_per_step']:.1f} tokens, TPOT p50 "
            f"{tpot.get('p50', 0):.2f} p99 {tpot.get('p99', 0):.2f} ms, {measured['compressions']} compressions "
            f"({measured['shadow_compressions']} shadow), stalled {measured['stalled_share_of_life']:.2%} of life"
        )


if __name__ == "__main__":
    main()
