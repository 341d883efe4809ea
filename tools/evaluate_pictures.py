"""A picture of what `tools.evaluate` has measured: accuracy over budget, and the speed beside it.

python -m tools.evaluate_pictures result.json other.json picture.png
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.bench_pictures import COLOURS

COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """One run, of one family where it is about accuracy.

    Attributes:
        policy: its name.
        budget: in tokens, mean over families where it is about speed; `None` for full KV.
        value: accuracy or tokens per second.
        low, high: the ends of its interval, where there is one.
    """

    policy: str
    budget: float | None
    value: float
    low: float | None = None
    high: float | None = None


def draw_accuracy(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each family or data set with accuracies and their intervals over the budget, and one for the speed.

    Args:
        results: what `tools.evaluate` has written; runs of all of them are drawn together.
        path: the PNG file.
    """
    runs = [run for result in results for run in result["runs"]]
    names = list(dict.fromkeys(name for run in runs for name in run["groups"]))
    policies = list(dict.fromkeys(run["policy"] for run in runs if run["budget"] is not None))
    colours = {policy: COLOURS[index % len(COLOURS)] for index, policy in enumerate(policies)}
    columns = min(COLUMNS, len(names) + 1)
    rows = -(-(len(names) + 1) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.4, 2.9 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        _draw_panel(axes, list(_accuracies(runs, name)), colours)
        axes.set(title=name, ylabel="share of right answers", ylim=(-0.03, 1.03))
        _show_shares(axes, _full_length(runs, name))
    speed = panels[len(names)]
    _draw_panel(speed, [_speed(run) for run in runs], colours)
    speed.set(title="speed", ylabel="output tokens per second")
    speed.set_ylim(bottom=0)
    for axes in panels[len(names) + 1 :]:
        axes.axis("off")
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.suptitle(_title(results), fontsize=9)
    figure.savefig(path, dpi=150)


def _draw_panel(axes: Axes, points: Sequence[Point], colours: Mapping[str, str]) -> None:
    """A line for each policy over the budget, and a dashed one for full KV."""
    for point in points:
        if point.budget is None:
            axes.axhline(point.value, color="black", linestyle="--", linewidth=1, label=point.policy)
    for policy, colour in colours.items():
        own = sorted((point for point in points if point.policy == policy and point.budget), key=_budget_of)
        if own:
            values = [point.value for point in own]
            axes.errorbar(
                [_budget_of(point) for point in own], values, _errors(own), label=policy, color=colour,
                marker="o", markersize=4, capsize=2, linewidth=1.2,
            )  # fmt: skip
    axes.set_xlabel("budget, tokens", fontsize=8)
    axes.tick_params(labelsize=8)


def _budget_of(point: Point) -> float:
    return point.budget or 0.0


def _errors(points: Sequence[Point]) -> list[list[float]] | None:
    """How far the intervals reach below and above the values."""
    if any(point.low is None or point.high is None for point in points):
        return None
    below = [point.value - (point.low or 0.0) for point in points]
    return [below, [(point.high or 0.0) - point.value for point in points]]


def _accuracies(runs: Sequence[Mapping[str, Any]], name: str) -> Iterator[Point]:
    for run in runs:
        if name in run["groups"]:
            group = run["groups"][name]
            yield Point(run["policy"], group["budget"], **group["share"])


def _speed(run: Mapping[str, Any]) -> Point:
    budgets = [group["budget"] for group in run["groups"].values() if group["budget"] is not None]
    return Point(run["policy"], sum(budgets) / len(budgets) if budgets else None, run["output_tokens_per_second"])


def _full_length(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Mean final length with full KV, where that has been run."""
    lengths = (run["groups"][name]["mean_final_length"] for run in runs if not run["budget"] and name in run["groups"])
    return next(lengths, None)


def _show_shares(axes: Axes, length: float | None) -> None:
    """A second scale above the panel, in percent of the mean final length."""
    if length is None:
        return
    scale: tuple[Callable[[Any], Any], Callable[[Any], Any]] = (lambda x: 100 * x / length, lambda x: x * length / 100)
    upper = axes.secondary_xaxis("top", functions=scale)
    upper.set_xlabel("% of the mean final length", fontsize=7)
    upper.tick_params(labelsize=7)


def _title(results: Sequence[Mapping[str, Any]]) -> str:
    """Models, devices and versions, each only once."""
    parts = (
        [result["model"] for result in results],
        [result["device"] for result in results],
        [f"torch {result['versions']['torch']}" for result in results],
    )
    return ", ".join(" and ".join(dict.fromkeys(part)) for part in parts) + "; intervals of 95%"


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("picture", type=click.Path(dir_okay=False, path_type=Path))
def main(results: tuple[Path, ...], picture: Path) -> None:
    """Draw RESULTS of tools.evaluate together; a policy of the same name must be the same in all of them."""
    loaded = [json.loads(result.read_text()) for result in results]
    scorings: dict[str, Any] = {}
    for run in (run for result in loaded for run in result["runs"]):
        known, scoring = scorings.setdefault(run["policy"], run["scoring_options"]), run["scoring_options"]
        if known != scoring:
            raise click.UsageError(f"policy {run['policy']} must be the same in all results, not {known} and {scoring}")
    draw_accuracy(loaded, picture)


if __name__ == "__main__":
    main()
