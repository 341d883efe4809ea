"""Decode steps: how long the device computed each, and how often one ended, beside compressions and without."""

from dataclasses import dataclass

import numpy as np

from tools.tracing.intervals import Intervals, union
from tools.tracing.merge import EngineTrace, Window
from tools.tracing.spread import MILLISECONDS, Spread, spread
from tools.tracing.tables import Flags, Integers, SpanTable, last_before

# Batches count as of similar size when they differ by less than this from the size that is looked at.
_SIMILAR_SHARE = 0.1

# The device's spans of a step: `decode` and `prefill` on a GPU, `step` on a CPU.
STEP_NAMES = ("decode", "prefill", "step")
JOB_NAMES = ("stall", "shadow", "swap out", "swap in")
COMPRESSION_NAMES = ("stall", "shadow")


@dataclass(frozen=True)
class Steps:
    """What the device did for each step, in order of the ends; all [n].

    Attributes:
        ids: the scheduler's numbers, int64.
        incarnations: of the decode worker, int64.
        starts, ends: of the first and of the last span of the step on the device, nanoseconds, int64.
        rows: of all spans of the step, int64.
        pure: whether every row had one token of its own to decode: none of its spans is `prefill`, and its plan has as
            many tokens as rows; bool.
        plans: index of its plan, -1 where the trace has none, int64.
    """

    ids: Integers
    incarnations: Integers
    starts: Integers
    ends: Integers
    rows: Integers
    pure: Flags
    plans: Integers


def device_spans(trace: EngineTrace) -> SpanTable:
    """The device's spans of decode steps."""
    return trace.spans("decode", "device", names=STEP_NAMES)


def job_spans(trace: EngineTrace) -> SpanTable:
    """The batches of compressions and the swaps."""
    return trace.spans("compression", "device", "swap", names=JOB_NAMES)


def plan_spans(trace: EngineTrace) -> SpanTable:
    """The scheduler's plans."""
    return trace.spans("scheduler", "scheduler", names=("plan",))


def collect_steps(device: SpanTable, plans: SpanTable) -> Steps:
    """Put together the spans of each step."""
    steps = device.column("step")
    order = np.lexsort((device.starts, steps, device.incarnations))
    ids, incarnations = steps[order], device.incarnations[order]
    first = np.flatnonzero(np.diff(ids, prepend=-1) | np.diff(incarnations, prepend=-1)) if len(ids) else order
    starts = np.minimum.reduceat(device.starts[order], first)
    plan_of = last_before(ids[first], starts, plans.column("step"), plans.starts)
    prefill = np.logical_or.reduceat(device.named("prefill")[order], first)
    one_token_each = np.append(plans.column("tokens") == plans.column("rows"), False)[plan_of]
    ends = np.maximum.reduceat(device.ends[order], first)
    rows = np.add.reduceat(device.column("rows")[order], first)
    ranked = np.argsort(ends, kind="stable")
    return Steps(
        ids=ids[first][ranked],
        incarnations=incarnations[first][ranked],
        starts=starts[ranked],
        ends=ends[ranked],
        rows=rows[ranked],
        pure=(~prefill & one_token_each)[ranked],
        plans=plan_of[ranked],
    )


@dataclass(frozen=True)
class StepTimes:
    """Times of some steps.

    Attributes:
        device_ms: from the start of the step's first span on the device to the end of its last.
        interval_ms: from the end of the step before it on the device to its own end; left out where meanwhile no
            request was in the engine, where the decode worker was another one, and for the first step.
    """

    device_ms: Spread
    interval_ms: Spread


@dataclass(frozen=True)
class StepFigures:
    """Steps that end in the window.

    Attributes:
        count: all of them.
        pure_decode: those in which every row decoded one token.
        rows: the smallest and the largest batch of those that are compared: within a tenth of the median batch of the
            pure decode steps that ran beside a compression, or of all pure decode steps where there are none such;
            `None` without pure decode steps.
        alone: compared steps during whose time no compression was on the device at all (no `stall`, no `shadow`).
        beside_compression: compared steps during whose time one was, for however short a time. For `interval_ms`
            the time is that between the two ends.
    """

    count: int
    pure_decode: int
    rows: tuple[int, int] | None
    alone: StepTimes
    beside_compression: StepTimes


def step_figures(steps: Steps, jobs: SpanTable, alive: Intervals, window: Window) -> StepFigures:
    """The figures of decode steps.

    Args:
        steps: of the whole trace.
        jobs: compressions and swaps of the whole trace.
        alive: when requests were in the engine.
        window: where steps have to end.
    """
    counted = (window.start <= steps.ends) & (steps.ends <= window.end)
    compressions = jobs.select(jobs.named(*COMPRESSION_NAMES))
    busy = union(compressions.starts, compressions.ends)
    beside = busy.overlap(steps.starts, steps.ends) > 0
    pure = counted & steps.pure
    typical = steps.rows[pure & beside] if (pure & beside).any() else steps.rows[pure]
    rows = _similar_rows(typical)
    compared = pure & (rows[0] <= steps.rows) & (steps.rows <= rows[1]) if rows else pure

    before = np.concatenate((steps.ends[:1], steps.ends[:-1]))
    idle = np.maximum(steps.starts, before) - before
    follows = np.diff(steps.incarnations, prepend=-1) == 0
    follows &= alive.overlap(before, before + idle) == idle
    beside_interval = busy.overlap(before, steps.ends) > 0

    def times(with_compression: bool) -> StepTimes:
        device = compared & (beside == with_compression)
        interval = compared & follows & (beside_interval == with_compression)
        return StepTimes(
            spread((steps.ends - steps.starts)[device], MILLISECONDS),
            spread((steps.ends - before)[interval], MILLISECONDS),
        )

    return StepFigures(int(counted.sum()), int(pure.sum()), rows, times(False), times(True))


def _similar_rows(rows: Integers) -> tuple[int, int] | None:
    if not len(rows):
        return None
    median = float(np.median(rows))
    similar = rows[np.abs(rows - median) <= max(_SIMILAR_SHARE * median, 1)]
    return int(similar.min()), int(similar.max())
