"""Pictures of recorded benchmarks: drawn from the records of this repository, and the numbers in them."""

from pathlib import Path

import matplotlib.image
import pytest
from click.testing import CliRunner

from tools.bench_pictures import main, step_times

RECORDS = Path(__file__).parents[2] / "docs/benchmarks"
A_BLANK_PICTURE = 0.01


@pytest.mark.parametrize(
    ("command", "records"),
    [
        ("throughput", ["2026-11-25-h200-workload-a.json"]),
        ("tpot", ["2026-11-25-h200-tpot.json"]),
        (
            "steps",
            [
                "0.6b={}/2026-11-25-h200-pipeline-synchronous-0.6b.json",
                "8b={}/2026-11-25-h200-pipeline-synchronous.json",
            ],
        ),
    ],
)
def test_pictures_of_the_records_are_drawn(tmp_path, command, records):
    files = [record.format(RECORDS) if "{}" in record else str(RECORDS / record) for record in records]
    result = CliRunner().invoke(main, [command, *files, str(tmp_path / "picture.png")])
    assert result.exit_code == 0, result.output
    pixels = matplotlib.image.imread(tmp_path / "picture.png")
    assert (pixels[..., :3] < 1).any(axis=2).mean() > A_BLANK_PICTURE


def test_step_times_are_means_over_the_steps_and_leave_out_what_is_before_and_after_them():
    report = {
        "window_s": [0.0, 90.0],
        "steps": {"count": 4},
        "idle": {"span_ms": 10.0},
        "compression": {"compressions": {"total_ms": 2.0}},
    }
    assert step_times(report) == (2.5, 0.5)
