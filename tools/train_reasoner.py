"""Trains a small Qwen3 model on synthetic reasoning, and writes it in the Hugging Face layout.

    python -m tools.train_reasoner --output DIR --minutes 9
    python -m tools.train_reasoner --output DIR --minutes 9 --resume

A run ends after `--steps`, or before that when its minutes are over; `--resume` then goes on as if it had not ended.
The folder has the model after the last save, `training_state.safetensors` for resuming, and `log.jsonl`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from tools.reasoning import checkpoint
from tools.reasoning.batches import BatchShape, TrainingBatches, load
from tools.reasoning.evaluation import held_out, measure
from tools.reasoning.model import Shape
from tools.reasoning.schedule import LONGEST, longest_trace
from tools.reasoning.trainer import Settings, Trainer
from zipage.bundled.tasks.families import FAMILIES

Log = Callable[[dict[str, Any]], None]

FINAL_SHORTEST = 2000
ROOM_FOR_REASONING = 0.75
LOG_EVERY = 50


def run(trainer: Trainer, workers: int, evaluate_every: int, deadline: float, log: Log, output: Path) -> None:
    """Train until the last step or the deadline (on the clock of `time.monotonic`), and save."""
    batch_shape = trainer.settings.batch
    batches = load(
        TrainingBatches(batch_shape, trainer.settings.seed), trainer.step, workers, trainer.device.type == "cuda"
    )
    started, waited, logged = time.monotonic(), 0.0, trainer.step
    while trainer.step < batch_shape.steps and time.monotonic() < deadline:
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        loss = trainer.train(batch)
        if trainer.step % LOG_EVERY == 0 or trainer.step == batch_shape.steps:
            value, seconds = loss.item(), time.monotonic() - started
            tokens = (trainer.step - logged) * batch_shape.rows * batch_shape.length
            pace = {"tokens_per_second": round(tokens / seconds), "waiting_share": round(waited / seconds, 3)}
            longest = longest_trace(batch_shape.progress(trainer.step))
            log({"step": trainer.step, "loss": value, "longest": longest} | pace)
            started, waited, logged = time.monotonic(), 0.0, trainer.step
        if trainer.step % evaluate_every == 0:
            trainer.save(output)
            longest = longest_trace(batch_shape.progress(trainer.step))
            log({"step": trainer.step} | accuracies(trainer, 16, longest // 3, longest))
            started, waited, logged = time.monotonic(), 0.0, trainer.step
    trainer.save(output)


def accuracies(trainer: Trainer, count: int, shortest: int, longest: int) -> dict[str, Any]:
    """Accuracy by family on `count` held-out prompts each, with reasoning of about `shortest` to `longest` tokens.

    Where rows are short, both bounds are as much shorter as it takes; prompts that do not fit after all are left out.
    """
    shape, seed = trainer.settings.batch, trainer.settings.seed
    longest = min(longest, int(ROOM_FOR_REASONING * shape.length))
    shortest = min(shortest, longest)
    results = {}
    for family in FAMILIES:
        drawn = held_out(family, count, shortest, longest, seed)
        documents = [document for document in drawn if len(document.token_ids) <= shape.length]
        results[family] = asdict(measure(trainer.predict, documents, shape.rows, shape.length))
    return {"prompts": count, "shortest": shortest, "longest": longest, "accuracy": results}


@click.command()
@click.option("--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--steps", default=4500, show_default=True, help="Of the whole training, all runs together.")
@click.option("--minutes", default=20.0, show_default=True, help="Most time of this run, but for the last evaluation.")
@click.option("--resume", is_flag=True, help="Go on from the state in --output.")
@click.option(
    "--weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Begin with the weights of this checkpoint.",
)
@click.option("--rows", default=32, show_default=True, help="Of a batch.")
@click.option("--length", default=8192, show_default=True, help="Tokens of a row.")
@click.option("--layers", default=8, show_default=True)
@click.option("--hidden", default=256, show_default=True, help="Width; the feed-forward part is three times as wide.")
@click.option("--peak-rate", default=1.5e-3, show_default=True, help="Highest learning rate.")
@click.option("--optimizer", type=click.Choice(["adamw", "muon"]), default="adamw", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of weights and data.")
@click.option("--workers", default=4, show_default=True, help="Processes that make data.")
@click.option("--evaluate-every", default=500, show_default=True, help="Steps between evaluations; each saves.")
@click.option("--final-prompts", default=256, show_default=True, help="Of each family, in the last evaluation.")
def main(
    output: Path,
    steps: int,
    minutes: float,
    resume: bool,
    weights: Path | None,
    rows: int,
    length: int,
    layers: int,
    hidden: int,
    peak_rate: float,
    optimizer: str,
    seed: int,
    workers: int,
    evaluate_every: int,
    final_prompts: int,
) -> None:
    """Train, evaluate and save."""
    deadline = time.monotonic() + 60 * minutes
    if resume and weights is not None:
        raise click.UsageError("--resume and --weights exclude each other")
    model = Shape(layers=layers, hidden=hidden, intermediate=3 * hidden)
    settings = Settings(model, BatchShape(rows, length, steps, grows=weights is None), peak_rate, seed, optimizer)
    output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if resume:
        try:
            trainer.resume(output)
        except (OSError, ValueError) as error:
            raise click.ClickException(str(error)) from None
    elif weights is not None:
        checkpoint.load_weights(trainer.model, weights)
    with (output / "log.jsonl").open("a") as file:

        def log(record: dict[str, Any]) -> None:
            line = json.dumps(record)
            click.echo(line)
            print(line, file=file, flush=True)

        log({"parameters": sum(each.numel() for each in trainer.model.parameters())} | settings.facts())
        run(trainer, workers, evaluate_every, deadline, log, output)
        if trainer.step == steps:
            log({"step": steps} | accuracies(trainer, final_prompts, FINAL_SHORTEST, LONGEST))


if __name__ == "__main__":
    main()
