"""The results of one simulation as numbers, and of several as a table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from tools.simulation.measurements import Measurements
from tools.simulation.simulation import Simulation


@dataclass(frozen=True)
class Summary:
    """One simulation.

    Attributes:
        seconds: of virtual time until the last request had ended.
        tokens_per_second: output tokens.
        tpot, ttft: seconds for each output token after the first, and from arrival to the first; means, medians and
            99th percentiles over requests.
        mean_running, most_running: requests that hold a row and are not swapped.
        mean_batch: requests of a step.
        stalled_share: of the time of running requests, that in which a compression kept them from decoding.
        without_slot_share: likewise, that in which they waited for a query slot.
        without_blocks_share: likewise, that in which they waited for blocks, or for a place in a step.
        stalled_seconds, shadow_stalled_seconds: as requests report them, in all: how long compressions kept them from
            decoding, and of that for those in shadow mode.
        decode_idle_share: of the time until nothing is left, that without a step on the device.
        job_busy_share: of the time, that with a job on the device.
    """

    seconds: float
    tokens_per_second: float
    mean_tpot: float
    p50_tpot: float
    p99_tpot: float
    mean_ttft: float
    p99_ttft: float
    mean_running: float
    most_running: int
    mean_batch: float
    stalled_share: float
    without_slot_share: float
    without_blocks_share: float
    stalled_seconds: float
    shadow_stalled_seconds: float
    decode_idle_share: float
    job_busy_share: float
    steps: int
    compressions: int
    shadow_compressions: int
    preemptions: int
    swaps: int
    recomputed_tokens: int


def summarize(simulation: Simulation, measured: Measurements, device_seconds: float) -> Summary:
    """The numbers of a simulation in which requests have had tokens.

    Args:
        simulation: it has ended.
        measured: what has watched it.
        device_seconds: until steps and jobs had ended too, which a request does not wait for.
    """
    counters, device, seconds = simulation.scheduler.counters, simulation.device, measured.last_end
    ends = [metrics for metrics in measured.ends if metrics.output_tokens]
    tpots = [(end.finished - end.first_token) / (end.output_tokens - 1) for end in ends if end.output_tokens > 1]
    ttfts = [end.first_token - end.arrived for end in ends]
    running = measured.running.request_seconds
    return Summary(
        seconds=seconds,
        tokens_per_second=counters.output_tokens / seconds,
        mean_tpot=fmean(tpots) if tpots else 0.0,
        p50_tpot=percentile(tpots, 0.5) if tpots else 0.0,
        p99_tpot=percentile(tpots, 0.99) if tpots else 0.0,
        mean_ttft=fmean(ttfts),
        p99_ttft=percentile(ttfts, 0.99),
        mean_running=running / seconds,
        most_running=measured.running.most,
        mean_batch=measured.rows_planned / counters.steps,
        stalled_share=measured.stalled.request_seconds / running,
        without_slot_share=measured.without_slot.request_seconds / running,
        without_blocks_share=measured.without_blocks.request_seconds / running,
        stalled_seconds=sum(end.stalled for end in measured.ends),
        shadow_stalled_seconds=sum(end.shadow_stalled for end in measured.ends),
        decode_idle_share=1 - device.steps.busy_seconds / device_seconds,
        job_busy_share=device.jobs.busy_seconds / device_seconds,
        steps=counters.steps,
        compressions=counters.compressions,
        shadow_compressions=counters.shadow_compressions,
        preemptions=counters.preemptions,
        swaps=counters.swaps,
        recomputed_tokens=simulation.rows.recomputed_tokens,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


# Heading, width, and what stands there.
COLUMNS: list[tuple[str, int, Callable[[Summary], str]]] = [
    ("tok/s", 7, lambda s: f"{s.tokens_per_second:.0f}"),
    ("TPOT ms", 8, lambda s: f"{1e3 * s.mean_tpot:.2f}"),
    ("p50 ms", 8, lambda s: f"{1e3 * s.p50_tpot:.2f}"),
    ("p99 ms", 8, lambda s: f"{1e3 * s.p99_tpot:.2f}"),
    ("TTFT s", 8, lambda s: f"{s.mean_ttft:.2f}"),
    ("p99 s", 8, lambda s: f"{s.p99_ttft:.2f}"),
    ("running", 8, lambda s: f"{s.mean_running:.1f}"),
    ("most", 5, lambda s: f"{s.most_running}"),
    ("batch", 7, lambda s: f"{s.mean_batch:.1f}"),
    ("stalled", 8, lambda s: f"{s.stalled_share:.1%}"),
    ("shadow s", 10, lambda s: f"{s.shadow_stalled_seconds:.2f}"),
    ("no slot", 8, lambda s: f"{s.without_slot_share:.1%}"),
    ("no block", 9, lambda s: f"{s.without_blocks_share:.1%}"),
    ("preempted", 10, lambda s: f"{s.preemptions}"),
    ("recomputed", 11, lambda s: f"{s.recomputed_tokens}"),
    ("swaps", 6, lambda s: f"{s.swaps}"),
    ("shadow jobs", 13, lambda s: f"{s.shadow_compressions}/{s.compressions}"),
    ("steps", 8, lambda s: f"{s.steps}"),
    ("idle", 7, lambda s: f"{s.decode_idle_share:.1%}"),
    ("jobs", 7, lambda s: f"{s.job_busy_share:.1%}"),
]


def table_heading() -> str:
    """The first line of a table."""
    return f"{'requests':>8}  {'policy':<8}" + "".join(f"{heading:>{width}}" for heading, width, _ in COLUMNS)


def table_row(num_requests: int, policy: str, summary: Summary) -> str:
    """The line of one simulation."""
    cells = "".join(f"{text(summary):>{width}}" for _, width, text in COLUMNS)
    return f"{num_requests:>8}  {policy:<8}{cells}"
