"""The picture of a compression: which part of the run, and that it is written."""

import numpy as np
import pytest
from matplotlib.image import imread
from trace_cases import MS, make_trace, plan, span

from tools.tracing.picture import choose_window, draw_timeline, median_compression


def run_of_steps(jobs):
    """A hundred steps of 10 ms, and compressions."""
    return make_trace(
        scheduler=[plan(step, 10 * step, 4) for step in range(100)]
        + [span("stalled", "stall", 300, 300 + n, uids=[n]) for n in range(1, 10)],
        decode=[span("device", "decode", 10 * n, 10 * n + 9, step=n, rows=4) for n in range(100)],
        compression=[span("device", name, start, end, uids=[1]) for name, start, end in jobs],
    )


JOBS = [("stall", 100, 130), ("shadow", 400, 420), ("stall", 700, 701)]


def test_the_median_compression_is_in_the_middle():
    trace = run_of_steps(JOBS)
    job = median_compression(trace)
    assert job.name == "shadow"
    shown = choose_window(trace, job, None)
    assert (shown.start, shown.end) == (260 * MS, 560 * MS)
    shown = choose_window(trace, job, 50)
    assert (shown.start, shown.end) == (385 * MS, 435 * MS)


@pytest.mark.parametrize("start, expected", [(0, (0, 300)), (980, (700, 1000))])
def test_the_picture_stays_inside_the_run(start, expected):
    trace = run_of_steps([("stall", start, start + 20)])
    shown = choose_window(trace, median_compression(trace), None)
    assert (shown.start, shown.end) == (expected[0] * MS, expected[1] * MS)


def test_a_long_compression_is_shown_whole():
    trace = run_of_steps([("stall", 100, 500)])
    shown = choose_window(trace, median_compression(trace), None)
    assert shown.start <= 100 * MS < 500 * MS <= shown.end


@pytest.mark.parametrize("jobs", [JOBS, []])
def test_a_picture_is_written(tmp_path, jobs):
    trace = run_of_steps(jobs)
    draw_timeline(trace, trace.window.start, tmp_path / "timeline.png", None)
    pixels = imread(tmp_path / "timeline.png")
    height, width = pixels.shape[:2]
    assert width > 1200
    assert 300 < height < width
    # Decoding is drawn in its colour over a good part of a row.
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    assert (np.abs(pixels[..., :3] - blue).max(axis=2) < 0.01).sum() > width * 10


def test_a_run_without_steps_has_a_picture_too(tmp_path):
    trace = make_trace(scheduler=[span("scheduler", "add", 0, 1, uids=[1])])
    draw_timeline(trace, trace.window.start, tmp_path / "timeline.png", None)
    assert imread(tmp_path / "timeline.png").shape[1] > 1200
