"""All figures of a run."""

from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from tools.tracing.compilations import CompilationFigures, compilation_figures
from tools.tracing.compressions import CompressionFigures, compression_figures
from tools.tracing.hops import HopFigures, hop_figures
from tools.tracing.idle import IdleFigures, idle_figures
from tools.tracing.intervals import union
from tools.tracing.merge import EngineTrace, Window
from tools.tracing.requests import RequestFigures, lifetimes, request_figures, times_with_running
from tools.tracing.round_trips import RoundTripFigures, round_trip_figures
from tools.tracing.steps import StepFigures, collect_steps, device_spans, job_spans, plan_spans, step_figures


@dataclass(frozen=True)
class Report:
    """The figures of one window of a run.

    Attributes:
        run_s: of the whole trace, in seconds.
        window_s: start and end of the analysed part, in seconds since the start of the trace.
        processes: the headers of the trace's files, field by field.
    """

    run_s: float
    window_s: tuple[float, float]
    processes: list[dict[str, Any]]
    steps: StepFigures
    compression: CompressionFigures
    idle: IdleFigures
    round_trip: RoundTripFigures
    requests: RequestFigures
    compilations: CompilationFigures
    hops: list[HopFigures]

    def to_json(self) -> bytes:
        """As an indented JSON object of the same field names."""
        return msgspec.json.format(msgspec.json.encode(asdict(self)), indent=1)


def make_report(trace: EngineTrace, window: Window) -> Report:
    """Compute every figure of a part of a run; what belongs together is looked up in the whole trace."""
    device, jobs, plans = device_spans(trace), job_spans(trace), plan_spans(trace)
    steps, lives = collect_steps(device, plans), lifetimes(trace)
    decoding = union(device.starts, device.ends)
    origin = trace.window.start
    return Report(
        run_s=trace.window.length / 1e9,
        window_s=((window.start - origin) / 1e9, (window.end - origin) / 1e9),
        processes=[msgspec.structs.asdict(process.header) for process in trace.processes],
        steps=step_figures(steps, jobs, lives.alive(), window),
        compression=compression_figures(jobs, decoding, window),
        idle=idle_figures(steps, decoding, times_with_running(trace, lives), window),
        round_trip=round_trip_figures(trace, steps, plans, window),
        requests=request_figures(trace, lives, window),
        compilations=compilation_figures(trace, window),
        hops=hop_figures(trace, window),
    )
