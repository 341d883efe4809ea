"""Candidate eviction policies on right answers of the synthetic families, simulated without an engine.

    python -m tools.simulate_eviction --model DIR --candidate decay=1 --candidate heads=1.2:1.0 --budget 25%

Prints, for each candidate, budget and family, how many answers the model would get right to the last token, and how
many tokens of an answer it would get wrong on average. `tools.evaluate` measures the policies that the engine has.
"""

import json
import math
from pathlib import Path
from typing import Any

import click
import torch

from tools.reasoning import checkpoint
from tools.reasoning.evaluation import held_out
from tools.reasoning.eviction import Candidate, EvictionSimulator, Head
from tools.reasoning.model import Reasoner, Shape
from zipage.bundled.tasks.families import FAMILIES

NUMBERS = ("temperature", "decay", "recent_share", "anchor_share", "anchor_layers", "pin_share")


def parse_candidate(text: str) -> Candidate:
    """Parse `field=value,...`; `heads=LAYER.HEAD:SHARE+...` are the `head_shares`; an empty text has the defaults.

    Raises:
        click.BadParameter: an unknown field, or a value that is none of the field's.
    """
    fields: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            if name in NUMBERS:
                fields[name] = float(value)
            elif name == "reduce" and value in ("mean", "max"):
                fields[name] = value
            elif name == "sinks":
                fields[name] = int(value)
            elif name == "heads":
                fields["head_shares"] = dict(_head_share(item) for item in value.split("+"))
            else:
                raise ValueError
        except ValueError:
            raise click.BadParameter(
                f"{part!r} is not one of {', '.join(NUMBERS)} = number, reduce=mean|max, sinks=integer, "
                "heads=LAYER.HEAD:SHARE+..."
            ) from None
    return Candidate(**fields)


def _head_share(text: str) -> tuple[Head, float]:
    head, _, share = text.partition(":")
    layer, _, number = head.partition(".")
    return (int(layer), int(number)), float(share)


def load(model: Path) -> Reasoner:
    """The model of a checkpoint that has the shape of `Shape()`, in float32."""
    reasoner = Reasoner(Shape())
    checkpoint.load_weights(reasoner, model)
    return reasoner.eval()


@click.command()
@click.option("--model", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--candidate", "candidates", multiple=True, default=[""], help="FIELD=VALUE,...; repeatable.")
@click.option("--family", "families", multiple=True, type=click.Choice(list(FAMILIES)), help="Repeatable [all].")
@click.option(
    "--budget",
    "budgets",
    type=click.FloatRange(0, 100, min_open=True),
    multiple=True,
    default=[25.0, 15.0],
    help="Percent of the mean final length.",
)
@click.option("--prompts", type=click.IntRange(1), default=8, show_default=True, help="Of each family.")
@click.option("--shortest", type=click.IntRange(150), default=3000, show_default=True, help="Characters of reasoning.")
@click.option("--longest", type=click.IntRange(150), default=4500, show_default=True, help="Characters of reasoning.")
@click.option("--block-size", type=click.IntRange(1), default=64, show_default=True, help="Tokens between evictions.")
@click.option("--seed", default=5, show_default=True, help="Of the prompts.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a JSON line per result here.")
def main(
    model: Path,
    candidates: tuple[str, ...],
    families: tuple[str, ...],
    budgets: tuple[float, ...],
    prompts: int,
    shortest: int,
    longest: int,
    block_size: int,
    seed: int,
    output: Path | None,
) -> None:
    """Simulate candidates."""
    parsed = {text: parse_candidate(text) for text in candidates}
    simulator = EvictionSimulator(load(model), block_size)
    drawn = {family: held_out(family, prompts, shortest, longest, seed) for family in families or FAMILIES}
    for text, candidate in parsed.items():
        for budget in budgets:
            for family, documents in drawn.items():
                mean = sum(len(document.token_ids) for document in documents) / prompts
                keep = (math.ceil(mean * budget / 100 / block_size) - 1) * block_size
                try:
                    wrong = simulator.wrong_tokens(documents, candidate, keep)
                except ValueError as error:
                    raise click.ClickException(f"candidate {text!r}, {family}: {error}") from None
                right, mean_wrong = sum(count == 0 for count in wrong), sum(wrong) / prompts
                click.echo(f"{text or 'defaults':<40} {budget:>5g}% {family:<15} {right:>3}/{prompts} {mean_wrong:.1f}")
                if output is not None:
                    record = {"candidate": text, "budget_percent": budget, "family": family, "keep": keep}
                    with output.open("a") as file:
                        print(json.dumps(record | {"wrong_tokens": wrong}), file=file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
