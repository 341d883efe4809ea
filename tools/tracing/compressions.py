"""Compression jobs and swaps: how many, how long, and how much of that time decoding went on beside them."""

from dataclasses import dataclass

import numpy as np

from tools.tracing.intervals import Intervals
from tools.tracing.merge import Window
from tools.tracing.spread import MILLISECONDS, Spread, spread
from tools.tracing.steps import COMPRESSION_NAMES, JOB_NAMES
from tools.tracing.tables import SpanTable


@dataclass(frozen=True)
class JobFigures:
    """Batches of jobs that end in the window: of one mode, or all compressions.

    Attributes:
        batches: runs on the device, each of one job or several.
        jobs: in all of them together.
        batch_ms: of each batch.
        total_ms: of all together.
        hidden_ms: of that, while a decode step was on the device (exact intersection).
        exposed_ms: the rest.
        hidden_share: `hidden_ms / total_ms`; `None` without jobs.
    """

    batches: int
    jobs: int
    batch_ms: Spread
    total_ms: float
    hidden_ms: float
    exposed_ms: float
    hidden_share: float | None


@dataclass(frozen=True)
class CompressionFigures:
    """What the compression worker did in the window.

    Attributes:
        compressions: stall and shadow together.
        by_mode: `stall`, `shadow`, `swap out`, `swap in`; those that there were.
        blocks_freed: by the compressions whose span says so in `freed`; `None` where none does.
        blocks_freed_per_ms: the same over the time of these compressions.
    """

    compressions: JobFigures
    by_mode: dict[str, JobFigures]
    blocks_freed: int | None
    blocks_freed_per_ms: float | None


def compression_figures(jobs: SpanTable, decoding: Intervals, window: Window) -> CompressionFigures:
    """The figures of jobs.

    Args:
        jobs: compressions and swaps of the whole trace.
        decoding: when decode steps were on the device.
        window: where jobs have to end.
    """
    jobs = jobs.select((window.start <= jobs.ends) & (jobs.ends <= window.end))
    compressions = jobs.select(jobs.named(*COMPRESSION_NAMES))
    by_mode = {mode: job_figures(jobs.select(jobs.named(mode)), decoding) for mode in JOB_NAMES}
    freed = compressions.column("freed")
    blocks, milliseconds = int(freed[freed >= 0].sum()), compressions.durations[freed >= 0].sum() / MILLISECONDS
    return CompressionFigures(
        compressions=job_figures(compressions, decoding),
        by_mode={mode: figures for mode, figures in by_mode.items() if figures.batches},
        blocks_freed=blocks if (freed >= 0).any() else None,
        blocks_freed_per_ms=float(blocks / milliseconds) if milliseconds else None,
    )


def job_figures(jobs: SpanTable, decoding: Intervals) -> JobFigures:
    """The figures of some batches."""
    total = int(jobs.durations.sum())
    hidden = int(np.sum(decoding.overlap(jobs.starts, jobs.ends)))
    return JobFigures(
        batches=len(jobs),
        jobs=sum(len(span.args.get("uids", ())) for span in jobs.spans),
        batch_ms=spread(jobs.durations, MILLISECONDS),
        total_ms=total / MILLISECONDS,
        hidden_ms=hidden / MILLISECONDS,
        exposed_ms=(total - hidden) / MILLISECONDS,
        hidden_share=hidden / total if total else None,
    )
