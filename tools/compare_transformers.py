"""Tokens per second of zipage against transformers' `generate`, the same prompts in one run, on this machine's CPU.

    python -m tools.compare_transformers --output result.json

Both decode greedily in float32, every prompt to the same number of output tokens, transformers as one left-padded
batch. The engine's start is not counted, nor is transformers' loading.
"""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import click
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tools.bundled_task import prompt_token_ids, samples
from zipage import LLM, SamplingParams
from zipage.models.source import default_model

_CHARACTERS = 3000


def run_transformers(prompts: list[list[int]], num_tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds and tokens of one batched `generate`."""
    directory = str(default_model())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=2, **options)
        started = time.perf_counter()
        output = model.generate(**inputs, max_new_tokens=num_tokens, min_new_tokens=num_tokens, **options)
        seconds = time.perf_counter() - started
    return seconds, output[:, batch["input_ids"].shape[1] :].tolist()


def run_zipage(prompts: list[list[int]], num_tokens: int, kv_budget: int) -> tuple[float, list[list[int]]]:
    """Seconds and tokens of one `LLM.generate`."""
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    with LLM(max_num_seqs=len(prompts), kv_budget=kv_budget, dtype="float32", device="cpu") as llm:
        llm.generate(prompts[0], SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))
        started = time.perf_counter()
        results = llm.generate(prompts, params)
        seconds = time.perf_counter() - started
        errors = llm.status().integrity_errors
    if errors:
        raise RuntimeError(f"the engine is not sound: {errors}")
    return seconds, [result.completions[0].token_ids for result in results]


@click.command()
@click.option("--num-prompts", default=64, show_default=True, help="Concurrent requests, and transformers' batch size.")
@click.option("--num-tokens", default=512, show_default=True, help="Output tokens of each request.")
@click.option("--kv-budget", default=256, show_default=True, help="Of the second zipage run; the first has none.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here as JSON.")
def main(num_prompts: int, num_tokens: int, kv_budget: int, output: Path | None) -> None:
    """Compare zipage with transformers on the bundled model."""
    prompts = [prompt_token_ids(task) for task in samples(num_prompts, _CHARACTERS, seed=0)]
    runs = {
        "transformers generate, one batch": run_transformers(prompts, num_tokens),
        "zipage, full KV": run_zipage(prompts, num_tokens, 0),
        f"zipage, kv_budget {kv_budget}": run_zipage(prompts, num_tokens, kv_budget),
    }
    _, expected = next(iter(runs.values()))
    summaries = {
        name: {
            "seconds": round(seconds, 2),
            "tokens_per_second": round(num_prompts * num_tokens / seconds, 1),
            "sequences_equal_to_transformers": sum(a == b for a, b in zip(tokens, expected, strict=True)),
        }
        for name, (seconds, tokens) in runs.items()
    }
    for name, summary in summaries.items():
        click.echo(
            f"{name:<34} {summary['tokens_per_second']:>8} tokens/s   {summary['seconds']:>7} s   "
            f"{summary['sequences_equal_to_transformers']}/{num_prompts} equal"
        )
    if output is not None:
        facts = {
            "prompts": num_prompts,
            "output_tokens_each": num_tokens,
            "cpu_count": os.cpu_count(),
            "machine": platform.machine(),
            "versions": {name: version(name) for name in ("torch", "transformers", "zipage")},
        }
        output.write_text(json.dumps(facts | {"runs": summaries}, indent=1) + "\n")


if __name__ == "__main__":
    main()
