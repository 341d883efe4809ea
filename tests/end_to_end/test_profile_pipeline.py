"""A traced run of a real engine: what the profile tool writes about it."""

import json
from pathlib import Path

import pytest
from chrome_schema import bound_slice, check_events, flows, slices_by_thread
from click.testing import CliRunner

from tools.profile_pipeline import main

OUTPUTS = {"trace.json", "report.json", "timeline.png"}
ENGINE = ("--kv-budget", "128", "--option", "threads=1", "--option", "kv_cache_gb=0.05")


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where a run was written, and what was printed."""
    output = tmp_path_factory.mktemp("profile") / "output"
    printed = invoke("run", "--output", output, "--prompts", 4, "--max-tokens", 120, *ENGINE)
    return output, printed


@pytest.fixture(scope="module")
def events(profiled: tuple[Path, str]) -> list[dict]:
    return json.loads((profiled[0] / "trace.json").read_text())["traceEvents"]


def test_the_trace_is_one_that_perfetto_can_read(events):
    check_events(events)
    lanes = {
        (process["args"]["name"], lane["args"]["name"])
        for process in events
        for lane in events
        if (process["name"], lane["name"]) == ("process_name", "thread_name") and process["pid"] == lane["pid"]
    }
    assert lanes >= {("scheduler", "scheduler"), ("decode", "device"), ("compression", "device")}
    assert {process for process, _ in lanes} <= {"tokenizer", "scheduler", "decode", "compression"}
    assert {event["name"] for event in events if event["ph"] == "C"} == {"requests", "pool"}


def test_every_request_can_be_followed(events):
    slices = slices_by_thread(events)
    ways = [[bound_slice(event, slices)["name"] for event in flow] for flow in flows(events).values()]
    # A job of a warm-up request may outlive it.
    ways = [names for names in ways if "add" in names]
    assert len(ways) == 4
    main_parts = ("add", "plan", "step", "finish step")
    for names in ways:
        assert tuple(name for name in names if name in main_parts) == main_parts
        assert {"stall", "shadow"} & set(names)
        assert "finish job" in names


def test_the_report_agrees_with_the_run(profiled):
    output, printed = profiled
    report = json.loads((output / "report.json").read_text())
    assert report["requests"]["requests"] == 4
    assert report["requests"]["unfinished"] == 0
    assert report["steps"]["count"] >= 120
    compression = report["compression"]
    assert compression["compressions"]["jobs"] >= 4
    parts = compression["by_mode"].values()
    assert sum(mode["jobs"] for mode in parts) == compression["compressions"]["jobs"]
    for mode in parts:
        assert mode["hidden_ms"] + mode["exposed_ms"] == pytest.approx(mode["total_ms"])
        assert 0 <= mode["hidden_share"] <= 1
    assert 0 <= report["idle"]["idle_while_running_share"] <= 1
    # The warm-up is not in the analysed part.
    assert report["window_s"][0] > 0
    assert f"Decode steps: {report['steps']['count']}" in printed
    assert (output / "timeline.png").stat().st_size > 10_000


def test_traces_are_analysed_again(profiled, tmp_path):
    traces = profiled[0] / "traces"
    invoke("analyse", traces, "--output", tmp_path / "whole")
    invoke("analyse", traces, "--output", tmp_path / "end", "--from", "-0.5", "--window", "100")
    for name in ("whole", "end"):
        assert {path.name for path in (tmp_path / name).iterdir()} == OUTPUTS
    whole, end = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "end"))
    # With the requests of the warm-up.
    assert whole["requests"]["requests"] == 6
    assert 0 < end["steps"]["count"] < whole["steps"]["count"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--from", "1e6"], "the part must begin before it ends"),
        (["--from", "0", "--to", "0"], "the part must begin before it ends"),
    ],
)
def test_a_part_that_is_not_there_is_refused(profiled, tmp_path, arguments, message):
    traces = str(profiled[0] / "traces")
    result = CliRunner().invoke(main, ["analyse", traces, "--output", str(tmp_path), *arguments])
    assert (result.exit_code, message in result.output) == (1, True)


def test_what_cannot_be_run_is_one_line(profiled, tmp_path):
    cases = [
        (["run", "--output", str(profiled[0])], "choose another --output"),
        (["run", "--output", str(tmp_path), "--option", "threads"], "FIELD=JSON"),
        (["run", "--output", str(tmp_path), "--option", "no_such=1"], "unknown option no_such"),
        (["analyse", str(tmp_path), "--output", str(tmp_path)], "holds no trace"),
    ]
    for arguments, message in cases:
        result = CliRunner().invoke(main, arguments)
        assert (result.exit_code != 0, message in result.output) == (True, True), result.output
