"""Share of state-machine traces that the engine gets right to the last character, for several eviction policies.

    python -m tools.evaluate_state_machine --output result.json

The prompts and the budget are those of the table in the bundled model's README: 16 prompts of 10 states and 100 steps,
384 entries kept of each layer and KV head, compressed whenever 448 are resident.
"""

import json
import time
from importlib.metadata import version
from pathlib import Path

import click

from tools.state_machine import samples
from zipage import LLM, SamplingParams
from zipage.messages import Status

BUDGET = 448
BLOCK_SIZE = 64
NO_REDUNDANCY = "redundancy=off,pooling=off"
POLICIES: dict[str, str | None] = {
    "full KV": None,
    "sinks 4 + most recent 380": f"paper,{NO_REDUNDANCY},recent=380",
    "window 16 + global score 0.8 (paper without pooling)": f"paper,{NO_REDUNDANCY}",
    "the same + redundancy full": "paper,pooling=off,redundancy=full",
    "the same + redundancy lightning": "paper,pooling=off",
    "the same without redundancy, prompt pinned": f"paper,{NO_REDUNDANCY},pin_prompt=true",
    "paper": "paper",
    "window 64 + global score 0.9": f"paper,{NO_REDUNDANCY},window=64,decay=0.9",
    "the same, last 192 always kept": f"paper,{NO_REDUNDANCY},window=64,decay=0.9,recent=192",
    "spread 64 + global score 0.9": f"paper,{NO_REDUNDANCY},observe=spread,window=64,decay=0.9,recent=16",
    "all queries + global score 0.9": f"paper,{NO_REDUNDANCY},observe=all,window=64,decay=0.9,recent=16",
    "default": "default",
}


def evaluate(policy: str | None, tasks: list[tuple[str, str]]) -> dict[str, float | int]:
    """Run one policy; `exact` counts the traces that are right to the last character."""
    budget, scoring = (0, "default") if policy is None else (BUDGET, policy)
    with LLM(block_size=BLOCK_SIZE, dtype="float32", kv_budget=budget, scoring=scoring) as llm:
        started = time.perf_counter()
        results = llm.generate([prompt for prompt, _ in tasks], SamplingParams(temperature=0.0, max_tokens=3000))
        seconds = time.perf_counter() - started
        status = idle_status(llm)
    if status.integrity_errors or status.blocks_used or status.slots_used:
        raise RuntimeError(f"the engine is not sound: {status}")
    completions = [result.completions[0] for result in results]
    metrics = [completion.metrics for completion in completions if completion.metrics is not None]
    return {
        "exact": sum(done.text == answer for done, (_, answer) in zip(completions, tasks, strict=True)),
        "compressions": sum(each.compressions for each in metrics),
        "peak_blocks_per_request": max(each.peak_blocks for each in metrics),
        "output_tokens": sum(each.output_tokens for each in metrics),
        "seconds": round(seconds, 1),
    }


def idle_status(llm: LLM) -> Status:
    """The engine's status once the step that was planned ahead of the last token has returned too."""
    deadline = time.monotonic() + 10
    while (status := llm.status()).blocks_used and time.monotonic() < deadline:
        time.sleep(0.01)
    return status


@click.command()
@click.option("--num-prompts", default=16, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the prompts.")
@click.option("--only", multiple=True, help="Run only policies whose name contains this; repeatable.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here as JSON.")
def main(num_prompts: int, seed: int, only: tuple[str, ...], output: Path | None) -> None:
    """Print a table of accuracies by policy."""
    tasks = samples(num_prompts, num_states=10, num_steps=100, seed=seed)
    policies = {name: text for name, text in POLICIES.items() if not only or any(part in name for part in only)}
    results = {}
    for name, policy in policies.items():
        results[name] = evaluate(policy, tasks) | {"scoring": policy}
        click.echo(f"{name:<54} {results[name]['exact']:>3}/{num_prompts}  {results[name]['seconds']:>6} s")
    if output is not None:
        facts = {"num_prompts": num_prompts, "seed": seed, "kv_budget": BUDGET, "block_size": BLOCK_SIZE}
        versions = {package: version(package) for package in ("torch", "zipage")}
        output.write_text(json.dumps(facts | {"versions": versions, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
