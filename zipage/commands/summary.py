"""What `zipage run` reports on stderr: the engine before the work, measurements after it."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence

from zipage.config import EngineConfig
from zipage.messages import Output, RequestMetrics, Status
from zipage.results import Completion, time_per_output_token, time_to_first_token


def describe_engine(name: str, config: EngineConfig, status: Status, *, mps: bool) -> str:
    """What to know of the model, the pool and the KV budget of an engine that is ready, and of MPS where it is used."""
    tokens = status.blocks_total * status.block_size
    lines = [
        f"model {name}, at most {status.max_model_len} tokens a sequence, {config.max_num_seqs} sequences at once",
        f"KV cache of {tokens} tokens ({status.blocks_total} blocks of {status.block_size})",
    ]
    if config.kv_budget:
        lines.append(f"KV budget {describe_budget(config)}")
    if status.host_blocks_total:
        swapped_tokens = status.host_blocks_total * status.block_size
        lines.append(f"host memory for {swapped_tokens} tokens of swapped requests ({status.host_blocks_total} blocks)")
    if mps:
        lines.append("compression runs beside decoding, through CUDA MPS")
    return "\n".join(lines)


def describe_budget(config: EngineConfig) -> str:
    """The budget, which is not 0, as asked for and as rounded up to whole blocks."""
    blocks = f"({config.max_blocks_per_request} blocks of {config.block_size})"
    if config.effective_kv_budget == config.kv_budget:
        return f"{config.kv_budget} tokens {blocks}"
    return f"{config.kv_budget} -> {config.effective_kv_budget} tokens {blocks}"


class Summary:
    """Measurements of the requests of one run."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._requests = 0
        self._output_tokens = 0
        self._compressions = 0
        self._preemptions = 0
        self._swaps = 0
        self._deadlines = 0
        self._first_token_seconds: list[float] = []
        self._token_seconds: list[float] = []

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Inside this context the engine works; speed is output tokens over this time."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - started

    def add(self, completions: Iterable[Completion | Output]) -> None:
        """Count one finished request by its completions, each whole or as its last output."""
        self._requests += 1
        for completion in completions:
            self._deadlines += completion.finish_reason == "deadline"
            if completion.metrics is not None:
                self._add_metrics(completion.metrics)

    def _add_metrics(self, metrics: RequestMetrics) -> None:
        self._output_tokens += metrics.output_tokens
        self._compressions += metrics.compressions
        self._preemptions += metrics.preemptions
        self._swaps += metrics.swaps
        ttft, tpot = time_to_first_token(metrics), time_per_output_token(metrics)
        if ttft is not None:
            self._first_token_seconds.append(ttft)
        if tpot is not None:
            self._token_seconds.append(tpot)

    def report(self, config: EngineConfig, status: Status) -> str:
        """The report, in three lines; `status` is the engine's after the work. What did not happen is left out."""
        speed = self._output_tokens / self._seconds if self._seconds else 0.0
        requests = count(self._requests, "request")
        if self._deadlines:
            requests += f" ({count(self._deadlines, 'completion')} ended by deadline)"
        lines = [
            f"{requests}, {self._output_tokens} output tokens in {self._seconds:.1f} s: {speed:.1f} tokens/s",
            f"TTFT {describe_times(self._first_token_seconds)}; TPOT {describe_times(self._token_seconds)}",
            ", ".join([*self._events(status), *_describe_pool(status)]),
        ]
        if config.kv_budget:
            lines[-1] += f", KV budget {describe_budget(config)}"
        return "\n".join(lines)

    def _events(self, status: Status) -> list[str]:
        """What has happened to the requests' KV."""
        preemptions = count(self._preemptions, "preemption")
        if self._swaps:
            preemptions += f" ({count(self._swaps, 'swap')})"
        events = [
            (self._compressions, count(self._compressions, "compression")),
            (self._preemptions, preemptions),
            (status.failed_jobs, f"{count(status.failed_jobs, 'failure')} to compress or swap"),
        ]
        return [text for number, text in events if number]


def _describe_pool(status: Status) -> list[str]:
    peak = f"{100 * status.blocks_peak / status.blocks_total:.0f}%"
    hits = f"{100 * status.cached_tokens / status.prompt_tokens:.0f}%" if status.prompt_tokens else "0%"
    return [f"peak pool use {peak} ({status.blocks_peak} of {status.blocks_total} blocks)", f"prefix cache hits {hits}"]


def count(number: int, noun: str) -> str:
    """A number of things whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe_times(seconds: Sequence[float]) -> str:
    """Mean, median and 99th percentile in milliseconds."""
    if not seconds:
        return "not measured"
    mean = 1000 * sum(seconds) / len(seconds)
    middle, high = 1000 * percentile(seconds, 50), 1000 * percentile(seconds, 99)
    return f"mean {mean:.1f} ms, p50 {middle:.1f} ms, p99 {high:.1f} ms"


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
