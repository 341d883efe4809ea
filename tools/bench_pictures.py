"""Pictures of what `tools.bench` has measured.

python -m tools.bench_pictures tpot result.json tpot.png
python -m tools.bench_pictures steps 0.6b=report.json 8b=report.json steps.png
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")


def draw_throughput(result: Mapping[str, Any], path: Path) -> None:
    """Output tokens per second of every run, for each workload, with vLLM's where it was measured."""
    workloads = list(result["workloads"])
    width = max(4.2, 1.1 * len(result["runs"]))
    figure = Figure(figsize=(width * len(workloads) + 1.5, 3.6), layout="constrained")
    for axes, workload in zip(figure.subplots(1, len(workloads), squeeze=False)[0], workloads, strict=True):
        values = {name: _of(run, workload)["output_tokens_per_second"] for name, run in result["runs"].items()}
        _bars(axes, values, "{:,.0f}")
        axes.set(title=_title(workload, result["workloads"][workload]), ylabel="output tokens per second")
        reference = result["workloads"][workload]["reference"]
        if reference:
            axes.axhline(reference, color="black", linestyle="--", linewidth=1)
            axes.annotate(
                "vLLM 0.26.0, full KV", (0.99, reference), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
    _save(figure, path, result)


def draw_tpot(result: Mapping[str, Any], path: Path) -> None:
    """Mean time per output token of all requests: a group of bars for each workload, a bar for each run."""
    workloads, runs = list(result["workloads"]), list(result["runs"])
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(runs)
    for index, run in enumerate(runs):
        means = [_of(result["runs"][run], workload)["tpot_ms"]["mean"] for workload in workloads]
        places = [place + (index - (len(runs) - 1) / 2) * width for place in range(len(workloads))]
        bars = axes.bar(places, means, width, label=run, color=COLOURS[index % len(COLOURS)])
        axes.bar_label(bars, fmt="{:.1f}", fontsize=7)
    axes.set_xticks(range(len(workloads)), [_title(name, result["workloads"][name]) for name in workloads])
    axes.set(ylabel="mean time per output token, ms")
    axes.legend(fontsize=8)
    _save(figure, path, result)


def draw_steps(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The mean time from step to step where compression is not asynchronous, and the part of it spent compressing.

    Args:
        reports: `report.json` of `tools.profile_pipeline` by the name to show.
        path: the PNG file.
    """
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes, names = figure.subplots(), list(reports)
    parts = [step_times(report) for report in reports.values()]
    total, compressing = [whole for whole, _ in parts], [part for _, part in parts]
    rest = [whole - part for whole, part in zip(total, compressing, strict=True)]
    axes.bar(names, rest, 0.5, label="everything else", color=COLOURS[0])
    bars = axes.bar(names, compressing, 0.5, bottom=rest, label="compressing", color=COLOURS[5])
    shares = [f"{whole:.2f} ms\n{part / whole:.1%} compressing" for whole, part in zip(total, compressing, strict=True)]
    axes.bar_label(bars, shares, fontsize=8)
    axes.set(ylabel="time of a step, ms", ylim=(0, 1.25 * max(total)))
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=150)


def step_times(report: Mapping[str, Any]) -> tuple[float, float]:
    """Milliseconds from step to step, from the first to the last one, and those of compressions among them, means."""
    steps = report["steps"]["count"]
    return report["idle"]["span_ms"] / steps, report["compression"]["compressions"]["total_ms"] / steps


def _bars(axes: Axes, values: Mapping[str, float], form: str) -> None:
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(values))]
    # A line for each field of a run's name.
    names = [name.replace("@", "\n").replace(";", "\n") for name in values]
    axes.bar_label(axes.bar(names, list(values.values()), 0.6, color=colours), fmt=form, fontsize=8)
    axes.tick_params("x", labelsize=8)
    axes.margins(y=0.15)


def _of(run: Mapping[str, Any], workload: str) -> Mapping[str, Any]:
    measured: Mapping[str, Any] = run["workloads"][workload]
    return measured


def _title(name: str, workload: Mapping[str, Any]) -> str:
    lengths = f"{workload['prompt_tokens']} in, {workload['output_tokens']} out"
    return f"{name}: {workload['shape']}, {workload['pool_gib']:g} GiB\n{workload['requests']} requests, {lengths}"


def _save(figure: Figure, path: Path, result: Mapping[str, Any]) -> None:
    figure.suptitle(f"{result['gpu'] or 'CPU'}, torch {result['versions']['torch']}", fontsize=9)
    figure.savefig(path, dpi=150)


@click.group()
def main() -> None:
    """Draw pictures of recorded results."""


@main.command()
@click.argument("result", type=click.Path(exists=True, path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
def throughput(result: Path, picture: Path) -> None:
    """Draw the output tokens per second of a result of tools.bench."""
    draw_throughput(json.loads(result.read_text()), picture)


@main.command()
@click.argument("result", type=click.Path(exists=True, path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
def tpot(result: Path, picture: Path) -> None:
    """Draw the mean time per output token of a result of tools.bench."""
    draw_tpot(json.loads(result.read_text()), picture)


@main.command()
@click.argument("reports", nargs=-1, required=True, metavar="NAME=REPORT...")
@click.argument("picture", type=click.Path(path_type=Path))
def steps(reports: tuple[str, ...], picture: Path) -> None:
    """Draw step times with their compressing share, from reports of tools.profile_pipeline."""
    named = dict(report.split("=", 1) for report in reports)
    draw_steps({name: json.loads(Path(file).read_text()) for name, file in named.items()}, picture)


if __name__ == "__main__":
    main()
