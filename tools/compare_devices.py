"""Greedy outputs of the bundled model under a budget, on one device against those recorded on another.

    python -m tools.compare_devices --device cpu --output cpu.json
    python -m tools.compare_devices --device cuda --against cpu.json --output cuda.json
    python -m tools.compare_devices --device cuda --dtype bfloat16 --against cpu.json --output cuda-bfloat16.json

The tasks have exact answers, so accuracy is counted beside equality. Requests are compressed at fixed lengths, so what
is kept depends on the request alone; in stall mode (`shadow_share=0`) tokens do too.
"""

import json
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from tools.bundled_task import UNDER_A_BUDGET, samples
from zipage import LLM, SamplingParams
from zipage.bundled.tasks.example import Example

_CHARACTERS = 1600


def generate(tasks: list[Example], options: dict[str, Any]) -> dict[str, Any]:
    """Token ids of every task, how many texts are right, and how often requests were compressed."""
    with LLM(**options) as llm:
        results = llm.chat([task.messages for task in tasks], SamplingParams(temperature=0.0, max_tokens=3000))
    completions = [result.completions[0] for result in results]
    return {
        "exact": sum(done.text == task.text for done, task in zip(completions, tasks, strict=True)),
        "compressions": sum(done.metrics.compressions for done in completions if done.metrics is not None),
        "token_ids": [done.token_ids for done in completions],
    }


def compare(tokens: list[list[int]], others: list[list[int]]) -> dict[str, Any]:
    """How many sequences are equal, and where the others differ first."""
    firsts = {}
    for index, (mine, theirs) in enumerate(zip(tokens, others, strict=True)):
        if mine != theirs:
            pairs = enumerate(zip(mine, theirs, strict=False))
            firsts[index] = next((place for place, (a, b) in pairs if a != b), min(len(mine), len(theirs)))
    return {"equal": len(tokens) - len(firsts), "first_difference_by_prompt": firsts}


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), required=True, help="Where the model runs.")
@click.option("--dtype", default="float32", show_default=True, help="Of weights and KV cache.")
@click.option("--num-prompts", default=64, show_default=True, help=f"Each of {_CHARACTERS} characters.")
@click.option("--kv-budget", default=448, show_default=True, help="In tokens; 0 is full KV.")
@click.option("--scoring", default="default", show_default=True, help="How a compression chooses what survives.")
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="An earlier output to compare with.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(
    device: str, dtype: str, num_prompts: int, kv_budget: int, scoring: str, against: Path | None, output: Path
) -> None:
    """Generate on one device, and compare with another."""
    options = {"device": device, "dtype": dtype, "kv_budget": kv_budget, "scoring": scoring, "block_size": 64}
    options |= {"kv_cache_gb": 1.0, "shadow_share": 0.0}
    result = generate(samples(num_prompts, _CHARACTERS, 0, UNDER_A_BUDGET), options)
    line = f"{device} {dtype}, budget {kv_budget}: {result['exact']}/{num_prompts} exact, "
    line += f"{result['compressions']} compressions"
    if against is not None:
        result["comparison"] = compare(result["token_ids"], json.loads(against.read_text())["token_ids"])
        line += f", {result['comparison']['equal']}/{num_prompts} token sequences equal"
    facts = {
        "command": shlex.join(["python", "-m", "tools.compare_devices", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in ("zipage", "torch")},
        "options": options,
    }
    output.write_text(json.dumps(facts | result) + "\n")
    click.echo(line)


if __name__ == "__main__":
    main()
