"""The progress bar and the summary."""

import io

import pytest
from fake_engine import fake_status, metrics_of
from rich.console import Console

from zipage.commands.progress import ProgressBar, Speed, describe_load
from zipage.commands.summary import Summary, describe_engine, describe_times, percentile
from zipage.config import EngineConfig
from zipage.messages import Output, RequestMetrics
from zipage.results import Completion, time_per_output_token, time_to_first_token


def test_speed_is_measured_over_the_last_statuses():
    speed = Speed()
    assert speed.add(0.0, 100) == 0.0
    assert speed.add(1.0, 150) == 50.0
    assert [speed.add(float(second), 150) for second in range(2, 12)][-1] == 0.0


def test_load_is_one_line():
    status = fake_status(running=3, waiting=2)
    assert describe_load(status, 12.34) == "12 tokens/s, 3 running, 2 waiting, pool 25%"
    status = fake_status(running=3, waiting=2, swapped=1)
    assert describe_load(status, 12.34) == "12 tokens/s, 3 running, 2 waiting, 1 swapped, pool 25%"


@pytest.mark.parametrize(
    "host_blocks, lines", [(0, []), (20, ["host memory for 320 tokens of swapped requests (20 blocks)"])]
)
@pytest.mark.parametrize("mps", [False, True])
def test_an_engine_is_described_with_its_swap_space_and_mps(host_blocks, lines, mps):
    status = fake_status(host_blocks_total=host_blocks)
    assert describe_engine("x", EngineConfig(model="x"), status, mps=mps).splitlines() == [
        "model x, at most 16384 tokens a sequence, 256 sequences at once",
        "KV cache of 1600 tokens (100 blocks of 16)",
        *lines,
        *(["compression runs beside decoding, through CUDA MPS"] if mps else []),
    ]


def draw(is_terminal, shown=True):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=100)
    with ProgressBar(4, shown=shown, console=console) as bar:
        bar.advance()
        bar.show_status(fake_status(running=3))
        with bar.paused():
            screen.write("=answer=")
    return screen.getvalue()


def test_a_terminal_shows_the_bar():
    screen = draw(is_terminal=True)
    assert "1/4" in screen
    assert "3 running" in screen
    before, after = screen.split("=answer=")
    assert before.endswith("\x1b[2K")
    assert "1/4" in after


@pytest.mark.parametrize("is_terminal, shown", [(False, True), (True, False)])
def test_no_bar_is_drawn_otherwise(is_terminal, shown):
    assert draw(is_terminal, shown).strip() == "=answer="


@pytest.mark.parametrize("percent, value", [(50, 2), (99, 4), (1, 1), (75, 3)])
def test_percentiles_are_by_nearest_rank(percent, value):
    assert percentile([4, 1, 3, 2], percent) == value


def test_times_are_in_milliseconds():
    assert describe_times([0.001, 0.002, 0.006]) == "mean 3.0 ms, p50 2.0 ms, p99 6.0 ms"
    assert describe_times([]) == "not measured"


def metrics(output_tokens, preemptions=1, swaps=0):
    return RequestMetrics(1.0, 1.25, 2.25, 5, output_tokens, 2, 3, preemptions, swaps, 0.0, 0.0)


def completion(metrics, finish_reason="stop"):
    return Completion(0, "", [], None, finish_reason, None, metrics)


@pytest.mark.parametrize("tokens, ttft, tpot", [(0, None, None), (1, 0.25, None), (5, 0.25, 0.25)])
def test_times_of_a_completion(tokens, ttft, tpot):
    assert (time_to_first_token(metrics(tokens)), time_per_output_token(metrics(tokens))) == (ttft, tpot)


def test_a_summary_counts_every_completion():
    summary = Summary()
    summary.add([completion(metrics(5)), completion(metrics(0))])
    summary.add([])
    summary.add([completion(metrics_of(3)), completion(None)])
    status = fake_status(prompt_tokens=200, cached_tokens=50)
    first, times, last = summary.report(EngineConfig(model="x", kv_budget=100), status).splitlines()
    assert first == "3 requests, 8 output tokens in 0.0 s: 0.0 tokens/s"
    assert times == ("TTFT mean 375.0 ms, p50 250.0 ms, p99 500.0 ms; TPOT mean 375.0 ms, p50 250.0 ms, p99 500.0 ms")
    assert last == (
        "5 compressions, 2 preemptions, peak pool use 40% (40 of 100 blocks), prefix cache hits 25%, "
        "KV budget 100 -> 112 tokens (7 blocks of 16)"
    )


def test_a_summary_leaves_out_what_did_not_happen():
    summary = Summary()
    summary.add([completion(None)])
    first, _, last = summary.report(EngineConfig(model="x"), fake_status()).splitlines()
    assert first == "1 request, 0 output tokens in 0.0 s: 0.0 tokens/s"
    assert last == "peak pool use 40% (40 of 100 blocks), prefix cache hits 0%"


def test_a_summary_tells_swaps_failures_and_deadlines():
    summary = Summary()
    summary.add([completion(metrics(5, preemptions=2, swaps=1)), completion(metrics(5), "deadline")])
    summary.add([Output("r", 0, "", [], finish_reason="deadline", metrics=metrics(5, swaps=1))])
    first, _, last = summary.report(EngineConfig(model="x"), fake_status(failed_jobs=1)).splitlines()
    assert first == "2 requests (2 completions ended by deadline), 15 output tokens in 0.0 s: 0.0 tokens/s"
    assert last.startswith("6 compressions, 4 preemptions (2 swaps), 1 failure to compress or swap, peak pool use 40%")
