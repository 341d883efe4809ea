"""Every figure of the report on traces whose answers are known."""

import pytest
from trace_cases import finish, make_file, make_trace, plan, span, window

from tools.tracing.compilations import CompilationFigures, compilation_figures
from tools.tracing.compressions import compression_figures
from tools.tracing.hops import hop_figures
from tools.tracing.idle import idle_figures
from tools.tracing.intervals import union
from tools.tracing.merge import merge
from tools.tracing.report import make_report
from tools.tracing.report_text import report_text
from tools.tracing.requests import lifetimes, request_figures, times_with_running
from tools.tracing.round_trips import round_trip_figures
from tools.tracing.spread import Spread
from tools.tracing.steps import collect_steps, device_spans, job_spans, plan_spans, step_figures

NONE = Spread(0, None, None)


def one(value: float) -> Spread:
    return Spread(1, pytest.approx(value), pytest.approx(value))


def same(count: int, value: float) -> Spread:
    return Spread(count, pytest.approx(value), pytest.approx(value))


def steps_of(trace):
    return collect_steps(device_spans(trace), plan_spans(trace))


def decode(step, start, end, rows=8):
    return span("device", "decode", start, end, step=step, rows=rows)


def steps_with_a_job():
    """Step 0 has a prompt; 1 and 2 decode, 2 beside a job that touches the idle time before 3; 4 is much smaller."""
    return make_trace(
        scheduler=[
            span("scheduler", "add", 0, 0.1, uids=[7]),
            plan(0, 1, 8, tokens=20, uids=(7,)),
            plan(1, 2, 8),
            plan(2, 3, 8),
            plan(3, 4, 8),
            plan(4, 5, 2),
            finish(4, 60, (7,)),
        ],
        decode=[
            decode(0, 10, 14, rows=7),
            span("device", "prefill", 14, 20, step=0, rows=1),
            decode(1, 20, 24),
            decode(2, 25, 31),
            decode(3, 33, 37),
            decode(4, 40, 41, rows=2),
        ],
        compression=[span("device", "shadow", 26, 32, uids=[7]), span("swap", "swap out", 34, 36, uids=[9])],
    )


def test_steps_beside_a_compression_and_alone():
    trace = steps_with_a_job()
    figures = step_figures(steps_of(trace), job_spans(trace), lifetimes(trace).alive(), trace.window)
    assert (figures.count, figures.pure_decode, figures.rows) == (5, 4, (8, 8))
    # The job is no longer on the device when step 3 is, but it was after the end of step 2.
    assert figures.alone.device_ms == same(2, 4.0)
    assert figures.beside_compression.device_ms == one(6.0)
    assert figures.alone.interval_ms == one(4.0)
    assert figures.beside_compression.interval_ms == Spread(2, pytest.approx(6.5), pytest.approx(6.99))


def test_a_step_with_a_prompt_lasts_from_its_graph_to_its_prefill():
    steps = steps_of(steps_with_a_job())
    assert steps.ids.tolist() == [0, 1, 2, 3, 4]
    assert (steps.ends - steps.starts).tolist()[0] == 10_000_000
    assert steps.rows.tolist() == [8, 8, 8, 8, 2]
    assert steps.pure.tolist() == [False, True, True, True, True]


def test_only_steps_that_end_in_the_window_count():
    trace = steps_with_a_job()
    figures = step_figures(steps_of(trace), job_spans(trace), lifetimes(trace).alive(), window(21, 31))
    assert (figures.count, figures.pure_decode) == (2, 2)
    assert figures.alone.interval_ms == one(4.0)
    assert figures.beside_compression.interval_ms == one(7.0)


def test_on_a_cpu_the_plan_tells_which_steps_have_prompts():
    trace = make_trace(
        scheduler=[plan(0, 0, 2, tokens=9), plan(1, 1, 2), plan(2, 2, 3, tokens=4)],
        decode=[span("device", "step", 10 * n, 10 * n + 5, step=n, rows=2) for n in range(4)],
    )
    # Step 3 has no plan in the trace, so it is unknown what it is.
    assert steps_of(trace).pure.tolist() == [False, True, False, False]


def test_an_interval_needs_a_request_all_the_time_and_one_decode_worker():
    requests = [
        span("scheduler", "add", 0, 0.1, uids=[1]),
        finish(1, 20, (1,)),
        span("scheduler", "add", 30, 30.1, uids=[2]),
        finish(4, 70, (2,)),
    ]
    plans = [plan(0, 1, 1, uids=(1,)), plan(1, 2, 1), plan(2, 31, 1, uids=(2,)), plan(3, 36, 1), plan(4, 50, 1)]
    trace = merge(
        [
            make_file("scheduler", 1, requests + plans),
            make_file("decode", 3, [decode(4, 55, 60, rows=1)]),
            make_file(
                "decode", 2, [decode(n, *t, rows=1) for n, t in enumerate([(3, 8), (9, 15), (32, 35), (40, 45)])]
            ),
        ]
    )
    steps = steps_of(trace)
    assert steps.incarnations.tolist() == [0, 0, 0, 0, 1]
    figures = step_figures(steps, job_spans(trace), lifetimes(trace).alive(), trace.window)
    assert figures.alone.interval_ms == Spread(2, pytest.approx(8.5), pytest.approx(9.97))


def test_without_steps_there_are_no_figures():
    trace = make_trace(scheduler=[span("scheduler", "add", 0, 1, uids=[1])])
    report = make_report(trace, trace.window)
    assert (report.steps.count, report.steps.rows, report.idle.idle_share) == (0, None, None)
    assert report.compression.compressions.hidden_share is None
    assert report.requests.stalled_share is None
    assert report.round_trip.plan_us == NONE
    assert "Decode steps: 0" in report_text(report)


def test_hidden_and_exposed_time_of_jobs():
    trace = make_trace(
        decode=[decode(0, 0, 10), decode(1, 12, 20)],
        compression=[
            span("device", "stall", 8, 14, uids=[1, 2], freed=6),
            span("device", "shadow", 21, 25, uids=[3], freed=4),
            span("swap", "swap in", 1, 3, uids=[4]),
            span("device", "shadow", 30, 40, uids=[5]),
        ],
    )
    device = device_spans(trace)
    decoding = union(device.starts, device.ends)
    figures = compression_figures(job_spans(trace), decoding, window(0, 26))
    assert list(figures.by_mode) == ["stall", "shadow", "swap in"]
    stall, swap = figures.by_mode["stall"], figures.by_mode["swap in"]
    assert (stall.batches, stall.jobs, stall.total_ms, stall.hidden_ms, stall.exposed_ms) == (1, 2, 6.0, 4.0, 2.0)
    assert stall.hidden_share == pytest.approx(4 / 6)
    assert (swap.total_ms, swap.hidden_share) == (2.0, 1.0)
    both = figures.compressions
    assert (both.batches, both.jobs, both.total_ms, both.hidden_ms) == (2, 3, 10.0, 4.0)
    assert both.batch_ms == Spread(2, 5.0, pytest.approx(5.98))
    assert (figures.blocks_freed, figures.blocks_freed_per_ms) == (10, 1.0)
    # The last job does not say what it frees, so its time does not count against the others.
    whole = compression_figures(job_spans(trace), decoding, trace.window)
    assert (whole.compressions.batches, whole.blocks_freed, whole.blocks_freed_per_ms) == (3, 10, 1.0)


def stalled_request():
    """Request 1 runs from 10.1 to 50 but for 20 to 30; the device works 12-18, 22-24 and 35-40."""
    return make_trace(
        scheduler=[
            span("scheduler", "add", 0, 1, uids=[1, 2]),
            plan(0, 10, 1, uids=(1,)),
            span("stalled", "stall", 20, 30, uids=[1]),
            finish(2, 49.9, (1,)),
        ],
        decode=[decode(0, 12, 18), decode(1, 22, 24), decode(2, 35, 40)],
    )


def test_idle_time_of_the_device():
    trace = stalled_request()
    device, lives = device_spans(trace), lifetimes(trace)
    figures = idle_figures(
        steps_of(trace), union(device.starts, device.ends), times_with_running(trace, lives), trace.window
    )
    assert (figures.span_ms, figures.idle_ms) == (28.0, 15.0)
    assert figures.idle_share == pytest.approx(15 / 28)
    assert figures.gap_ms == Spread(2, 7.5, pytest.approx(10.93))
    # Of the gaps 18-22 and 24-35, without 20-30.
    assert (figures.running_ms, figures.idle_while_running_ms) == (18.0, 7.0)
    assert figures.idle_while_running_share == pytest.approx(7 / 18)


def test_requests_and_what_held_them_up():
    trace = stalled_request()
    figures = request_figures(trace, lifetimes(trace), trace.window)
    # Request 2 has never been admitted.
    assert (figures.requests, figures.unfinished) == (1, 0)
    assert figures.lifetime_s == one(0.05)
    assert figures.stalled["stall"].count == 1
    assert figures.stalled["stall"].total_s == pytest.approx(0.010)
    assert figures.stalled["stall"].each_ms == one(10.0)
    assert figures.stalled_share == pytest.approx(0.2)


def test_times_of_requests_are_cut_at_the_window():
    trace = stalled_request()
    figures = request_figures(trace, lifetimes(trace), window(5, 25))
    assert (figures.requests, figures.lifetime_s) == (1, NONE)
    assert figures.total_lifetime_s == pytest.approx(0.020)
    assert figures.stalled["stall"].count == 0
    assert figures.stalled_share == pytest.approx(0.25)


def test_a_request_without_an_end_lives_until_the_trace_ends():
    trace = make_trace(scheduler=[plan(0, 2, 1, uids=(1,)), finish(0, 9.9)])
    figures = request_figures(trace, lifetimes(trace), trace.window)
    assert (figures.requests, figures.unfinished, figures.lifetime_s) == (1, 1, NONE)
    assert figures.total_lifetime_s == pytest.approx(0.008)


def test_the_parts_of_a_round_trip():
    trace = make_trace(
        scheduler=[plan(0, 0, 1), plan(1, 1, 1), finish(0, 10), plan(2, 10.3, 1), finish(1, 20), finish(2, 30)],
        decode=[
            span("host", "launch", 0.2, 0.5, step=0),
            span("host", "launch", 1.3, 1.6, step=1),
            span("host", "launch", 10.6, 10.9, step=2),
            decode(0, 2.1, 9.5),
            decode(1, 9.6, 19.5),
            decode(2, 19.6, 29.5),
        ],
    )
    figures = round_trip_figures(trace, steps_of(trace), plan_spans(trace), trace.window)
    assert figures.finish_step_us == same(3, 100)
    # The second and the third result are followed by no plan of their own.
    assert figures.finish_to_plan_us == one(200)
    assert figures.plan_us == same(3, 100)
    assert figures.plan_to_launch_us == Spread(3, pytest.approx(200), pytest.approx(200))
    assert figures.launch_us == same(3, 300)
    assert figures.plan_to_device_us == Spread(3, pytest.approx(8500), pytest.approx(9186))
    assert figures.device_to_finish_us == same(3, 500)


def test_hops_by_link_direction_and_type():
    def message(lane, name, start, end, link, seq, **peer):
        return span(lane, name, start, end, link=link, seq=seq, bytes=100 + seq, **peer)

    trace = merge(
        [
            make_file(
                "scheduler",
                1,
                [
                    message("link out", "Step", 1, 1.1, "decode", 0, peer=0),
                    message("link out", "Step", 5, 5.3, "decode", 1, peer=0),
                    message("link in", "StepResult", 9, 9.01, "decode", 0, peer=0),
                    # Another decode worker, whose messages are counted from 0 again.
                    message("link out", "Step", 20, 20.2, "decode", 0, peer=1),
                ],
            ),
            make_file(
                "decode",
                2,
                [
                    message("link in", "Step", 1.5, 1.55, "decode", 0),
                    message("link out", "StepResult", 8, 8.2, "decode", 0),
                ],
            ),
            make_file("decode", 3, [message("link in", "Step", 21, 21.05, "decode", 0)]),
        ]
    )
    result, step = hop_figures(trace, trace.window)
    assert (result.sender, result.receiver, result.message, result.count) == ("decode", "scheduler", "StepResult", 1)
    assert (result.encode_us, result.queue_us, result.decode_us) == (one(200), one(800), one(10))
    assert (step.sender, step.receiver, step.message, step.count) == ("scheduler", "decode", "Step", 3)
    assert step.encode_us == Spread(3, pytest.approx(200), pytest.approx(298))
    # The message that the first worker never received waits for ever, and is not counted.
    assert step.queue_us == Spread(2, pytest.approx(600), pytest.approx(796))
    assert step.decode_us == same(2, 50)
    assert step.bytes_p50 == 100


def test_the_report_is_printed_in_columns():
    trace = steps_with_a_job()
    report = make_report(trace, trace.window)
    text = report_text(report)
    assert "Decode steps: 5, of which 4 without prompts" in text
    rows = [line for line in text.splitlines() if line.startswith("  on the device")]
    assert [line.split()[-3:] for line in rows] == [["2", "4.000", "4.000"], ["1", "6.000", "6.000"]]
    assert len({len(line) for line in rows}) == 1


def test_kernels_that_were_compiled_in_the_window():
    spans = [("compile", 0, 10), ("compile", 20, 25), ("load", 30, 31)]
    trace = make_trace(decode=[span("compile", *each, kernel="decode_attention") for each in spans])
    assert compilation_figures(trace, window(5, 40)) == CompilationFigures(compiled=2, loaded=1, total_ms=16.0)
    assert compilation_figures(trace, window(11, 28)) == CompilationFigures(compiled=1, loaded=0, total_ms=5.0)
