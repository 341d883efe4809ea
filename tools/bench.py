"""Offline throughput: a workload with full KV and under budgets, in one run.

    python -m tools.bench --workload A --run 0:16 --run 512:128 --output result.json
    python -m tools.bench --workload B --random-weights qwen3-8b --run 1024:128 --output result.json
    python -m tools.bench --workload A --model DIRECTORY --run 512:128:paper --output result.json

A run is BUDGET:BLOCK_SIZE[:SCORING], the budget in tokens, 0 for full KV. Prompts are random tokens and outputs of a
fixed length.
"""

import contextlib
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from tools.bench_models import SHAPES, write_random_model
from zipage import LLM, SamplingParams


@dataclass(frozen=True)
class Workload:
    """Requests that arrive together, and the KV pool that they share."""

    shape: str
    pool_gib: float
    requests: int
    prompt_tokens: int
    output_tokens: int


WORKLOADS = {
    "A": Workload("qwen3-0.6b", 4, 128, 256, 2048),
    "B": Workload("qwen3-8b", 10, 128, 256, 3072),
}


def measure(model: Path, workload: Workload, run: str, options: dict[str, Any]) -> dict[str, Any]:
    """Throughput of one run; the engine is warmed up by a few short requests first."""
    budget, block_size, *scoring = run.split(":", 2)
    engine = {
        "kv_budget": int(budget),
        "block_size": int(block_size),
        "scoring": scoring[0] if scoring else "default",
        "kv_cache_gb": workload.pool_gib,
    }
    prompts = random_prompts(workload)
    started = time.perf_counter()
    with LLM(model, **engine, **options) as llm:
        ready = time.perf_counter() - started
        warm_up = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=int(budget) + 2 * int(block_size))
        llm.generate(random_prompts(workload)[:2], warm_up)
        before = llm.status()
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=workload.output_tokens)
        started = time.perf_counter()
        results = llm.generate(prompts, sampling)
        seconds = time.perf_counter() - started
        after = llm.status()
    metrics = [m for result in results for done in result.completions if (m := done.metrics) is not None]
    tokens, steps = sum(each.output_tokens for each in metrics), after.steps - before.steps
    return {
        "options": engine | options,
        "ready_s": ready,
        "seconds": seconds,
        "output_tokens": tokens,
        "output_tokens_per_second": tokens / seconds,
        "steps": steps,
        "ms_per_step": 1000 * seconds / steps,
        "tokens_per_step": tokens / steps,
        "compressions": after.compressions - before.compressions,
        "shadow_compressions": after.shadow_compressions - before.shadow_compressions,
        "preemptions": after.preemptions - before.preemptions,
        "swaps": after.swaps - before.swaps,
        "failed_jobs": after.failed_jobs,
        "blocks_total": after.blocks_total,
        "slots_total": after.slots_total,
        "integrity_errors": after.integrity_errors,
    }


def random_prompts(workload: Workload) -> list[list[int]]:
    """The same prompts every time; token ids that every shape has."""
    generator = random.Random(0)
    return [
        [generator.randrange(100, 100_000) for _ in range(workload.prompt_tokens)] for _ in range(workload.requests)
    ]


@contextlib.contextmanager
def model_directory(model: Path | None, shape: str) -> Iterator[Path]:
    """The given model, or one with random weights that lasts as long as the context."""
    if model is not None:
        yield model
        return
    with tempfile.TemporaryDirectory() as directory:
        write_random_model(shape, Path(directory))
        yield Path(directory)


@click.command()
@click.option("--workload", "name", type=click.Choice(list(WORKLOADS)), required=True, help="Which requests.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="A model directory.")
@click.option("--random-weights", "shape", type=click.Choice(list(SHAPES)), help="A shape [the workload's].")
@click.option("--run", "runs", multiple=True, required=True, help="BUDGET:BLOCK_SIZE[:SCORING]; 0 is full KV.")
@click.option("--requests", type=int, help="Instead of the workload's number.")
@click.option("--output-tokens", type=int, help="Instead of the workload's length.")
@click.option("--option", "options", multiple=True, help="FIELD=JSON of the engine's config.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(
    name: str,
    model: Path | None,
    shape: str | None,
    runs: tuple[str, ...],
    requests: int | None,
    output_tokens: int | None,
    options: tuple[str, ...],
    output: Path,
) -> None:
    """Measure the offline throughput of a workload."""
    fields = asdict(WORKLOADS[name])
    changes = {"shape": shape, "requests": requests, "output_tokens": output_tokens}
    workload = Workload(**fields | {field: value for field, value in changes.items() if value is not None})
    engine_options = {field: json.loads(value) for field, value in (option.split("=", 1) for option in options)}
    result: dict[str, Any] = {
        "workload": asdict(workload),
        "model": str(model) if model else "random weights",
        "zipage": version("zipage"),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "runs": {},
    }
    with model_directory(model, workload.shape) as directory:
        for run in runs:
            result["runs"][run] = measured = measure(directory, workload, run, engine_options)
            output.write_text(json.dumps(result, indent=1))
            click.echo(
                f"{run}: {measured['output_tokens_per_second']:.0f} output tokens/s, {measured['ms_per_step']:.2f} ms "
                f"a step of {measured['tokens_per_step']:.1f} tokens, {measured['compressions']} compressions"
            )


if __name__ == "__main__":
    main()
