"""The report as aligned text."""

from collections.abc import Iterator, Sequence

from tools.tracing.report import Report
from tools.tracing.round_trips import RoundTripFigures
from tools.tracing.spread import Spread

_Cell = str | float | int | None
_Table = Sequence[Sequence[_Cell]]


def report_text(report: Report) -> str:
    """All figures; tools/tracing has their definitions beside each."""
    parts = (_run, _steps, _compression, _idle, _round_trip, _requests, _compilations, _hops)
    return "\n".join(line for part in parts for line in part(report))


def _run(report: Report) -> Iterator[str]:
    start, end = report.window_s
    yield f"{end - start:.3f} s, from {start:.3f} to {end:.3f} s of a run of {report.run_s:.3f} s"
    for process in report.processes:
        fields = {name: value for name, value in process.items() if name != "process"}
        yield f"  {process['process']:<12}" + ", ".join(f"{name} {value}" for name, value in fields.items())


def _steps(report: Report) -> Iterator[str]:
    steps = report.steps
    yield from _heading(f"Decode steps: {steps.count}, of which {steps.pure_decode} without prompts")
    if steps.rows is None:
        return
    low, high = steps.rows
    yield f"  without prompts, of {low if low == high else f'{low} to {high}'} rows, in ms"
    yield from _table(
        [
            ("", "count", "p50", "p99"),
            ("on the device, no compression beside it", *_cells(steps.alone.device_ms)),
            ("on the device, beside a compression", *_cells(steps.beside_compression.device_ms)),
            ("end to end of steps, no compression between", *_cells(steps.alone.interval_ms)),
            ("end to end of steps, with a compression between", *_cells(steps.beside_compression.interval_ms)),
        ]
    )


def _compression(report: Report) -> Iterator[str]:
    figures = report.compression
    kinds = figures.by_mode | {"all compressions": figures.compressions}
    yield from _heading("Compression worker, in ms; hidden: while a decode step was on the device")
    rows = [
        (
            name,
            jobs.batches,
            jobs.jobs,
            jobs.batch_ms.p50,
            jobs.batch_ms.p99,
            jobs.total_ms,
            jobs.hidden_ms,
            jobs.exposed_ms,
            _percent(jobs.hidden_share),
        )
        for name, jobs in kinds.items()
    ]
    yield from _table([("", "batches", "jobs", "p50", "p99", "total", "hidden", "exposed", "share"), *rows])
    if figures.blocks_freed is not None:
        yield f"  {figures.blocks_freed} blocks freed, {_number(figures.blocks_freed_per_ms)} per ms of compression"


def _idle(report: Report) -> Iterator[str]:
    idle = report.idle
    yield from _heading("Device without a decode step, between the first and the last one")
    yield from _table(
        [
            ("", "ms", "of ms", "share"),
            ("all the time", idle.idle_ms, idle.span_ms, _percent(idle.idle_share)),
            (
                "while a request ran",
                idle.idle_while_running_ms,
                idle.running_ms,
                _percent(idle.idle_while_running_share),
            ),
        ]
    )
    if idle.gap_ms.count:
        yield f"  {idle.gap_ms.count} gaps, p50 {_number(idle.gap_ms.p50)} ms, p99 {_number(idle.gap_ms.p99)} ms"


def _round_trip(report: Report) -> Iterator[str]:
    trip: RoundTripFigures = report.round_trip
    yield from _heading("Round trip of a step, in microseconds")
    yield from _table(
        [
            ("", "count", "p50", "p99"),
            ("device end -> finish step", *_cells(trip.device_to_finish_us)),
            ("finish step", *_cells(trip.finish_step_us)),
            ("finish step -> next plan", *_cells(trip.finish_to_plan_us)),
            ("plan", *_cells(trip.plan_us)),
            ("plan -> launch", *_cells(trip.plan_to_launch_us)),
            ("launch", *_cells(trip.launch_us)),
            ("plan -> device start", *_cells(trip.plan_to_device_us)),
        ]
    )


def _requests(report: Report) -> Iterator[str]:
    requests = report.requests
    life = requests.lifetime_s
    yield from _heading(f"Requests: {requests.requests}, of which {requests.unfinished} have no end in the trace")
    yield (
        f"  together {requests.total_lifetime_s:.3f} s in the engine; from arrival to end p50 {_number(life.p50)} s, "
        f"p99 {_number(life.p99)} s"
    )
    if requests.stalled:
        rows = [
            (name, mode.count, mode.each_ms.p50, mode.each_ms.p99, mode.total_s)
            for name, mode in requests.stalled.items()
        ]
        yield from _table([("held up by a compression", "count", "p50 ms", "p99 ms", "total s"), *rows])
        yield f"  {_percent(requests.stalled_share)} of the requests' time in the engine"


def _compilations(report: Report) -> Iterator[str]:
    figures = report.compilations
    if figures.compiled or figures.loaded:
        text = f"Kernels while the engine ran: {figures.compiled} compiled, {figures.loaded} loaded"
        yield from _heading(f"{text}, {_number(figures.total_ms)} ms")


def _hops(report: Report) -> Iterator[str]:
    if not report.hops:
        return
    yield from _heading("Messages, times in microseconds")
    header = ("", "count", "bytes p50", "encode p50", "p99", "queue p50", "p99", "decode p50", "p99")
    rows = [
        (
            f"{hop.sender} -> {hop.receiver}: {hop.message}",
            hop.count,
            None if hop.bytes_p50 is None else round(hop.bytes_p50),
            *_cells(hop.encode_us)[1:],
            *_cells(hop.queue_us)[1:],
            *_cells(hop.decode_us)[1:],
        )
        for hop in report.hops
    ]
    yield from _table([header, *rows])


def _heading(text: str) -> Iterator[str]:
    yield ""
    yield text


def _cells(spread: Spread) -> tuple[_Cell, _Cell, _Cell]:
    return spread.count, spread.p50, spread.p99


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _number(value: _Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        # Four digits that mean something, and never an exponent.
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)


def _table(rows: _Table) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    texts = [[_number(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    for row in texts:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(["  " + row[0].ljust(widths[0]), *cells]).rstrip()
