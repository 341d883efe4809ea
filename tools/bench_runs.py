"""One run of the throughput benchmark: an engine with a budget, and what it does on one or more workloads."""

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from tools.bench_models import write_random_model
from tools.bench_workloads import Workload, random_prompts
from zipage import LLM, SamplingParams
from zipage.messages import RequestMetrics
from zipage.models.config import load_model_config


@dataclass(frozen=True)
class Run:
    """An engine to measure.

    Attributes:
        name: as it was given.
        budget: in tokens, 0 for full KV.
        block_size: in tokens.
        scoring: text for `parse_scoring`.
        options: further fields of `EngineConfig`.
    """

    name: str
    budget: int
    block_size: int
    scoring: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)

    def engine_options(self, pool_gib: float, trace: Path | None) -> dict[str, Any]:
        """Fields of `EngineConfig`; traces go into a directory named after the run."""
        fields = {
            "kv_budget": self.budget,
            "block_size": self.block_size,
            "scoring": self.scoring,
            "kv_cache_gb": pool_gib,
        }
        if trace is not None:
            fields["trace"] = str(trace / "".join(c if c.isalnum() else "-" for c in self.name))
        return fields | dict(self.options)


def parse_run(text: str, options: Mapping[str, Any]) -> Run:
    """Parse `BUDGET:BLOCK_SIZE[:SCORING][@FIELD=JSON[;FIELD=JSON...]]`; `options` are those of every run.

    Raises:
        click.BadParameter: it is none.
    """
    engine, _, own = text.partition("@")
    budget, _, rest = engine.partition(":")
    block_size, _, scoring = rest.partition(":")
    try:
        fields = parse_options(own.split(";") if own else [])
        return Run(text, int(budget), int(block_size), scoring or "default", {**options, **fields})
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not BUDGET:BLOCK_SIZE[:SCORING][@FIELD=JSON;...]: {error}") from None


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `FIELD=JSON` texts; a value that is no JSON is text.

    Raises:
        ValueError: there is no `=`.
    """
    fields = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"{text!r} is not FIELD=JSON")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields


def measure_run(model: Path, workloads: Mapping[str, Workload], run: Run, trace: Path | None) -> dict[str, Any]:
    """Start an engine, warm it up, and measure the workloads one after another."""
    (pool_gib,) = {workload.pool_gib for workload in workloads.values()}
    options = run.engine_options(pool_gib, trace)
    vocab_size = load_model_config(model).vocab_size
    started = time.perf_counter()
    with LLM(model, **options) as llm:
        ready = time.perf_counter() - started
        warm_up = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=run.budget + 2 * run.block_size)
        llm.generate(random_prompts(next(iter(workloads.values())), 1, vocab_size)[:2], warm_up)
        measured = {
            name: measure(llm, workload, random_prompts(workload, 0, vocab_size))
            for name, workload in workloads.items()
        }
    return {"options": options, "ready_s": ready, "workloads": measured}


def measure(llm: LLM, workload: Workload, prompts: list[list[int]]) -> dict[str, Any]:
    """Throughput, times per token and waits of one workload; times in milliseconds where the name says so.

    Raises:
        click.ClickException: a request was refused or did not get all of its tokens.
    """
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=workload.output_tokens)
    before, started = llm.status(), time.perf_counter()
    results = llm.generate(prompts, sampling)
    seconds, after = time.perf_counter() - started, llm.status()
    metrics = [m for result in results for done in result.completions if (m := done.metrics) is not None]
    tokens, steps = sum(each.output_tokens for each in metrics), after.steps - before.steps
    if tokens < len(prompts) * workload.output_tokens:
        why = next((f", refused: {result.error}" for result in results if result.error), "")
        raise click.ClickException(f"{tokens} of {len(prompts) * workload.output_tokens} output tokens came{why}")
    counters = ("compressions", "shadow_compressions", "preemptions", "swaps", "failed_jobs", "cached_tokens")
    measured: dict[str, Any] = {
        "seconds": seconds,
        "output_tokens": tokens,
        "output_tokens_per_second": tokens / seconds,
        "steps": steps,
        "ms_per_step": 1000 * seconds / steps,
        "tokens_per_step": tokens / steps,
        **request_times(metrics),
        **{name: getattr(after, name) - getattr(before, name) for name in counters},
        "blocks_total": after.blocks_total,
        "slots_total": after.slots_total,
        "integrity_errors": after.integrity_errors,
    }
    if workload.reference is not None:
        measured["times_reference"] = measured["output_tokens_per_second"] / workload.reference
    return measured


def request_times(metrics: Sequence[RequestMetrics]) -> dict[str, Any]:
    """Percentiles over requests of TTFT and of the mean time per output token, and what compressions made them wait."""
    lives = sum(each.finished - each.first_token for each in metrics)
    tpot = [1000 * (m.finished - m.first_token) / (m.output_tokens - 1) for m in metrics if m.output_tokens > 1]
    return {
        "ttft_ms": percentiles([1000 * (each.first_token - each.arrived) for each in metrics]),
        "tpot_ms": percentiles(tpot),
        "stalled_s": sum(each.stalled for each in metrics),
        "shadow_stalled_s": sum(each.shadow_stalled for each in metrics),
        "stalled_share_of_life": sum(each.stalled for each in metrics) / lives if lives else 0.0,
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, median and 99th percentile (nearest rank); empty without values."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "mean": statistics.fmean(ordered),
        "p50": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


@contextlib.contextmanager
def model_directory(model: Path | None, shape: str) -> Iterator[Path]:
    """The given model, or one with random weights that lasts as long as the context."""
    if model is not None:
        yield model
        return
    with tempfile.TemporaryDirectory() as directory:
        write_random_model(shape, Path(directory))
        yield Path(directory)
