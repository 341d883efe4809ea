"""A picture of the lanes around one compression: does it overlap decoding, and do the steps beside it take longer?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tools.tracing.intervals import union
from tools.tracing.lanes import Row, rows_of_trace
from tools.tracing.merge import EngineTrace, Window
from tools.tracing.steps import COMPRESSION_NAMES, collect_steps, device_spans, job_spans, plan_spans
from tools.tracing.tables import SpanTable
from zipage.tracing import Span

# Of Okabe and Ito, which colour-blind readers can tell apart.
_COLOURS = {
    "plan": "#009E73",
    "finish step": "#F0E442",
    "launch": "#000000",
    "decode": "#0072B2",
    "step": "#0072B2",
    "prefill": "#56B4E9",
    "stall": "#D55E00",
    "shadow": "#E69F00",
    "swap out": "#CC79A7",
    "swap in": "#CC79A7",
}
_OTHER_COLOUR = "#8A8A8A"
_LANES = ("tokenizer", "scheduler", "host", "compile", "device", "swap", "stalled")
# Always drawn: an empty lane says something there.
_EXPECTED = (("decode", "device"), ("compression", "device"))
_MOST_STALLED_ROWS = 6

_STEPS_SHOWN = 30
_JOB_SHARE = 0.4
_DPI = 120
# Below this share of the width no text fits into a bar.
_LABEL_SHARE = 0.04


def draw_timeline(trace: EngineTrace, origin: int, path: Path, window_ms: float | None) -> None:
    """Write a PNG.

    Args:
        trace: the part of the run to choose from.
        origin: the time in nanoseconds that is called 0.
        path: of the PNG.
        window_ms: width of the picture; `None` is some tens of steps, and the whole compression.
    """
    job = median_compression(trace)
    window = choose_window(trace, job, window_ms)
    rows = _visible_rows(trace, window)
    figure = Figure(figsize=(15, 2.6 + 0.5 * len(rows)), dpi=_DPI, layout="constrained")
    lanes, intervals = figure.subplots(2, 1, sharex=True, height_ratios=[max(len(rows), 3), 2])
    _draw_rows(lanes, rows, window, origin)
    _draw_intervals(intervals, trace, window, origin)
    for span in compressions(trace).spans:
        if _visible(span, window):
            for axes in (lanes, intervals):
                _shade(axes, span, origin)
    if job is not None:
        _outline(lanes, job, rows, origin)
    lanes.set_title(_title(trace, job), loc="left", fontsize=13)
    intervals.set_xlim((window.start - origin) / 1e6, (window.end - origin) / 1e6)
    intervals.set_xlabel("milliseconds since the start of the trace")
    FigureCanvasAgg(figure).print_png(str(path))


def compressions(trace: EngineTrace) -> SpanTable:
    """The batches of compressions."""
    jobs = job_spans(trace)
    return jobs.select(jobs.named(*COMPRESSION_NAMES))


def median_compression(trace: EngineTrace) -> Span | None:
    """Of all batches of compressions the one of median duration; `None` where there are none."""
    jobs = compressions(trace)
    return jobs.spans[int(np.argsort(jobs.durations, kind="stable")[(len(jobs) - 1) // 2])] if len(jobs) else None


def choose_window(trace: EngineTrace, job: Span | None, window_ms: float | None) -> Window:
    """A part of the trace with the job in its middle; without a job, the middle of the trace."""
    start, end = trace.window.start, trace.window.end
    middle = (start + end) // 2 if job is None else (job.start + job.end) // 2
    if window_ms is not None:
        width = round(1e6 * window_ms)
    else:
        ends = collect_steps(device_spans(trace), plan_spans(trace)).ends
        steps = _STEPS_SHOWN * float(np.median(np.diff(ends))) if len(ends) > 1 else end - start
        width = round(max(steps, 0 if job is None else (job.end - job.start) / _JOB_SHARE))
    left = max(min(middle - width // 2, end - width), start)
    return Window(left, max(min(left + width, end), left + 1))


def _visible_rows(trace: EngineTrace, window: Window) -> list[Row]:
    """Rows with what is visible of them, from top to bottom."""
    rows = []
    for row in rows_of_trace(trace):
        spans = [span for span in row.spans if _visible(span, window)]
        wanted = row.lane in _LANES and (row.lane != "stalled" or row.number < _MOST_STALLED_ROWS)
        if wanted and (spans or (row.process.name, row.lane) in _EXPECTED):
            rows.append(Row(row.process, row.lane, row.number, spans))
    # What compression takes from its requests belongs below it.
    return sorted(rows, key=lambda row: row.lane == "stalled")


def _visible(span: Span, window: Window) -> bool:
    return span.start < window.end and span.end > window.start


def _draw_rows(axes: Axes, rows: Sequence[Row], window: Window, origin: int) -> None:
    for height, row in enumerate(rows):
        bars = [((span.start - origin) / 1e6, (span.end - span.start) / 1e6) for span in row.spans]
        colours = [_COLOURS.get(span.name, _OTHER_COLOUR) for span in row.spans]
        # A white edge tells steps apart; what is short would vanish behind it.
        edges = "white" if row.lane in ("device", "swap") else colours
        axes.broken_barh(bars, (height - 0.38, 0.76), facecolors=colours, edgecolors=edges, linewidth=0.7)
        if row.process.name == "compression":
            _label_jobs(axes, height, row.spans, window, origin)
    axes.set_yticks(range(len(rows)), [_row_name(row) for row in rows], fontsize=11)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _add_legend(axes, rows)


def _shade(axes: Axes, job: Span, origin: int) -> None:
    left, right = (job.start - origin) / 1e6, (job.end - origin) / 1e6
    axes.axvspan(left, right, color=_COLOURS[job.name], alpha=0.12, linewidth=0, zorder=0)


def _outline(axes: Axes, job: Span, rows: Sequence[Row], origin: int) -> None:
    """Mark the job that the title is about."""
    for height, row in enumerate(rows):
        if any(span is job for span in row.spans):
            bar = [((job.start - origin) / 1e6, (job.end - job.start) / 1e6)]
            axes.broken_barh(bar, (height - 0.4, 0.8), facecolors="none", edgecolors="black", linewidth=1.6)


def _row_name(row: Row) -> str:
    process, name = row.process, row.name if row.name != row.process.name else ""
    restart = f" (restart {process.incarnation})" if process.incarnation else ""
    return f"{process.name}{restart} {name}".rstrip()


def _label_jobs(axes: Axes, height: float, jobs: Sequence[Span], window: Window, origin: int) -> None:
    """How many jobs a batch has, where there is room for that."""
    for span in jobs:
        visible = min(span.end, window.end) - max(span.start, window.start)
        middle = (max(span.start, window.start) + visible / 2 - origin) / 1e6
        if visible > _LABEL_SHARE * window.length:
            count = len(span.args.get("uids", ()))
            axes.text(middle, height, "1 job" if count == 1 else f"{count} jobs", ha="center", va="center")


def _add_legend(axes: Axes, rows: Sequence[Row]) -> None:
    names = {span.name for row in rows for span in row.spans}
    known = [name for name in _COLOURS if name in names]
    patches = [Patch(facecolor=_COLOURS[name], edgecolor="#606060", label=name) for name in known]
    if names - set(known):
        patches.append(Patch(facecolor=_OTHER_COLOUR, edgecolor="#606060", label="other"))
    if patches:
        axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=11)


def _draw_intervals(axes: Axes, trace: EngineTrace, window: Window, origin: int) -> None:
    """The time from the end of one step to the end of the next, at that end."""
    ends = collect_steps(device_spans(trace), plan_spans(trace)).ends
    times, lengths = ends[1:], np.diff(ends)
    jobs = compressions(trace)
    beside = union(jobs.starts, jobs.ends).overlap(ends[:-1], times) > 0
    shown = (window.start <= times) & (times <= window.end)
    kinds = (
        (shown & ~beside, "decode", "o", "no compression between"),
        (shown & beside, "stall", "^", "compression between"),
    )
    for chosen, colour, marker, label in kinds:
        axes.plot(
            (times[chosen] - origin) / 1e6,
            lengths[chosen] / 1e6,
            marker,
            color=_COLOURS[colour],
            markersize=5,
            label=label,
        )
    # Margins above, so that no mark is cut.
    axes.set_ylim(0, 1.15 * max(lengths[shown], default=1e6) / 1e6)
    axes.set_ylabel("ms from step\nend to step end")
    axes.grid(axis="y", color="#D8D8D8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=11)


def _title(trace: EngineTrace, job: Span | None) -> str:
    if job is None:
        return "No compression in this part of the run"
    device = device_spans(trace)
    decoding = union(device.starts, device.ends)
    hidden = int(decoding.overlap(np.array([job.start]), np.array([job.end]))[0]) / max(job.end - job.start, 1)
    return (
        f"The compression of median length, outlined ({job.name}, {(job.end - job.start) / 1e6:.2f} ms): "
        f"decode steps were on the device during {100 * hidden:.0f}% of it"
    )
