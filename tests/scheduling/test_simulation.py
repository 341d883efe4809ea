"""The scheduler in virtual time: random workloads end as they must, and what is measured of small ones is known."""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from random_workloads import Checker, random_case

from tools.simulate_scheduler import main
from tools.simulation.clock import EventQueue
from tools.simulation.cost_model import JOB_OVERHEAD, CostModel, cost_model
from tools.simulation.decode_rows import EOS
from tools.simulation.device import Device
from tools.simulation.measurements import Measurements
from tools.simulation.policies import EngineSize, engine_limits
from tools.simulation.report import Summary, percentile, summarize
from tools.simulation.shapes import SHAPES, entry_bytes, multiplied_parameters
from tools.simulation.simulation import Received, Sent, Simulation, StuckError
from tools.simulation.workload import Lengths, Preempt, Workload, generate_workload
from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionJob, SubmitTokens, SwapOut, TokenRequest
from zipage.sampling_params import SamplingParams
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.scheduler import Scheduler

NUM_WORKLOADS = 10_000
BATCH = 500
# Far more than any of them needs; what goes on for so long goes on for ever.
TIME_LIMIT = 300.0

# ---- random workloads ------------------------------------------------------------------------------------------------


def run_case(seed: int) -> None:
    limits, costs, workload = random_case(seed)
    checker = Checker(limits, workload)
    simulation = Simulation(limits, costs, workload, [checker])
    simulation.run(TIME_LIMIT)
    assert checker.ended == {request.uid for request in workload.requests}
    held, counters = simulation.scheduler.holdings, simulation.scheduler.counters
    assert counters.stalled_seconds == pytest.approx(checker.stalled)
    assert simulation.scheduler.is_idle
    assert simulation.scheduler.integrity_errors() == []
    for pool in (held.blocks, held.buffers, held.rows, held.host_blocks, held.host_slots):
        assert pool.num_used == 0
    assert (held.reserved_blocks, held.slots_used) == (0, 0)


@pytest.mark.parametrize("first_seed", range(0, NUM_WORKLOADS, BATCH))
def test_random_workloads_end_as_they_must(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + BATCH):
        try:
            run_case(seed)
        except Exception as error:
            raise AssertionError(f"run_case({seed}) replays this: {error!r}") from error


# ---- the simulation itself -------------------------------------------------------------------------------------------


@dataclass
class EventLog:
    """Everything that the scheduler receives and sends."""

    lines: list[tuple[float, Received | Sent]] = field(default_factory=list)

    def received(self, message: Received, now: float) -> None:
        self.lines.append((now, message))

    def sent(self, message: Sent, now: float) -> None:
        self.lines.append((now, message))

    def settled(self, scheduler: Scheduler, now: float) -> None:
        pass


def event_log(seed: int) -> list[tuple[float, Received | Sent]]:
    log = EventLog()
    Simulation(*random_case(seed), [log]).run(TIME_LIMIT)
    return log.lines


def test_a_seed_always_gives_the_same_events() -> None:
    logs = [event_log(seed) for seed in range(20)]
    assert logs == [event_log(seed) for seed in range(20)]
    assert sum(len(log) for log in logs) > 1000


def plain_limits(max_steps_in_flight: int, max_shadow_blocks: int) -> SchedulerLimits:
    """Blocks of 8 entries, a budget of two of them, and room for all."""
    return SchedulerLimits(
        num_blocks=20,
        block_size=8,
        num_query_slots=2,
        num_query_buffers=4,
        max_blocks_per_request=2,
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_model_len=100,
        max_steps_in_flight=max_steps_in_flight,
        prefix_caching=True,
        scoring=ScoringOptions(window=2, sinks=2),
        max_shadow_blocks=max_shadow_blocks,
    )


def plain_costs(job_seconds: float, message_latency: float = 0.0, step_slowdown: float = 1.0) -> CostModel:
    """A step takes a second."""
    return CostModel(
        weight_bytes=0,
        entry_bytes=0,
        block_size=8,
        token_seconds=0,
        message_latency=message_latency,
        step_slowdown=step_slowdown,
        job_slowdown=1.0,
        scheduling_seconds=0,
        step_overhead=1.0,
        job_overhead=job_seconds,
    )


def plain_workload(*requests: tuple[int, int | None]) -> Workload:
    """Prompts of 8 tokens at time 0, each with a number of output tokens and a budget."""
    messages = []
    for uid, (output_length, kv_budget) in enumerate(requests):
        params = SamplingParams(max_tokens=output_length, kv_budget=kv_budget, seed=uid)
        messages.append(TokenRequest(uid, [uid, *range(10, 17)], params, (EOS,)))
    return Workload([(0.0, SubmitTokens(messages))], dict.fromkeys(range(len(messages)), 100))


def summary_of(limits: SchedulerLimits, costs: CostModel, workload: Workload) -> Summary:
    measured = Measurements()
    simulation = Simulation(limits, costs, workload, [measured])
    return summarize(simulation, measured, simulation.run())


def test_what_goes_on_beyond_the_time_limit_is_stuck() -> None:
    simulation = Simulation(plain_limits(1, 0), plain_costs(1.0), plain_workload((10, None)))
    with pytest.raises(StuckError, match="1 running, 0 waiting, 0 swapped left after 3 s"):
        simulation.run(3)


def test_steps_and_jobs_slow_each_other_down() -> None:
    events, ends = EventQueue(), dict[str, float]()
    device = Device(events, step_slowdown=2.0, job_slowdown=4.0)
    work = [(0.0, "step 1", device.steps, 2.0), (1.0, "job", device.jobs, 0.75), (2.0, "step 2", device.steps, 1.0)]
    for time, name, lane, seconds in work:
        events.at(time, partial(device.submit, lane, seconds, partial(ends.__setitem__, name)))
    while events.run_next() is not None:
        pass
    # Half of step 1 alone, half beside the job; of the job 0.5 s until 3 and the rest until 4; step 2 likewise from 3.
    assert ends == {"step 1": 3.0, "job": 4.0, "step 2": 4.5}
    assert (device.steps.busy_seconds, device.jobs.busy_seconds) == (4.5, 3.0)


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_stall_of_a_request_alone() -> None:
    # The prompt and eight tokens fill two blocks at 9 s with nine tokens sampled; then a compression, and the tenth.
    summary = summary_of(plain_limits(1, 0), plain_costs(job_seconds=0.25), plain_workload((10, None)))
    assert (summary.seconds, summary.steps, summary.compressions, summary.shadow_compressions) == (10.25, 10, 1, 0)
    assert summary.stalled_share == pytest.approx(0.25 / 10.25)
    assert summary.tokens_per_second == pytest.approx(10 / 10.25)
    assert summary.mean_ttft == 1.0
    assert summary.mean_tpot == pytest.approx(9.25 / 9)
    assert (summary.mean_running, summary.most_running, summary.mean_batch) == (1.0, 1, 1.0)
    assert summary.decode_idle_share == pytest.approx(0.25 / 10.25)
    assert summary.job_busy_share == pytest.approx(0.25 / 10.25)
    assert (summary.preemptions, summary.swaps, summary.recomputed_tokens) == (0, 0, 0)


def test_stall_counts_the_messages_of_its_job_but_not_those_of_steps() -> None:
    costs = plain_costs(job_seconds=0.25, message_latency=0.125)
    summary = summary_of(plain_limits(1, 0), costs, plain_workload((10, None)))
    assert summary.seconds == 10 * 1.25 + 0.5
    assert summary.stalled_share == pytest.approx(0.5 / summary.seconds)


def test_stall_lasts_until_the_next_step() -> None:
    # The step from 9 s on is without the first request, and takes 0.25 s for its first eighth, as its job is at work.
    costs = plain_costs(job_seconds=0.25, step_slowdown=2.0)
    summary = summary_of(plain_limits(1, 0), costs, plain_workload((10, None), (11, 0)))
    assert (summary.seconds, summary.steps) == (11.125, 11)
    assert summary.stalled_share == pytest.approx(1.125 / (2 * 11.125))


def test_stall_beside_a_step_that_was_planned_ahead() -> None:
    # The first request's last token before its compression is computed until 9 s. The step after that is planned
    # already, and the one from 10 s on is planned at 9 s, before the job is done; so its tenth token comes at 12 s.
    workload = plain_workload((10, None), (14, 0))
    summary = summary_of(plain_limits(2, 0), plain_costs(job_seconds=0.25), workload)
    assert (summary.seconds, summary.steps) == (14.0, 14)
    assert summary.stalled_share == pytest.approx(2.0 / (12.0 + 14.0))
    # Without planning ahead it sits out the step from 9 s to 10 s alone.
    summary = summary_of(plain_limits(1, 0), plain_costs(job_seconds=0.25), workload)
    assert summary.stalled_share == pytest.approx(1.0 / (11.0 + 14.0))


@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
def test_without_overlap_everyone_waits_for_a_compression(max_steps_in_flight: int) -> None:
    limits = replace(plain_limits(max_steps_in_flight, 0), overlap=False)
    summary = summary_of(limits, plain_costs(job_seconds=0.25), plain_workload((10, None), (14, 0)))
    assert (summary.seconds, summary.steps) == (14.25, 14)
    assert summary.stalled_share == pytest.approx(0.25 / (10.25 + 14.25))
    assert summary.decode_idle_share == pytest.approx(0.25 / 14.25)


def test_a_shadow_job_stalls_only_behind_a_full_tail() -> None:
    # The job begins at 9 s with 16 entries; eight tokens go behind them until 17 s, and the job ends at 19 s. The next
    # one, for the last token, begins at once and ends long after its request.
    limits, workload = plain_limits(2, 4), plain_workload((18, None))
    summary = summary_of(limits, plain_costs(job_seconds=10.0), workload)
    assert (summary.seconds, summary.compressions, summary.shadow_compressions) == (20.0, 1, 1)
    assert summary.stalled_share == pytest.approx(2.0 / 20.0)
    assert summary.job_busy_share == pytest.approx(20.0 / 29.0)
    assert summary_of(limits, plain_costs(job_seconds=7.5), workload).stalled_share == 0


@pytest.mark.parametrize("hybrid_scheduling", [True, False])
def test_in_shadow_mode_no_request_waits_for_blocks(hybrid_scheduling: bool) -> None:
    # A full pool, in which more requests are due at a time than find blocks; those that do never sit out a step.
    size = EngineSize(pool_gib=2.5, swap_gib=0, kv_budget=1024, block_size=128, max_num_seqs=64, max_model_len=2304)
    limits = engine_limits(SHAPES["qwen3-8b"], size, {"hybrid_scheduling": hybrid_scheduling, "shadow_share": 0.2})
    workload = generate_workload(32, Lengths(256, 256), Lengths(2048, 2048), 0.0, seed=0)
    summary = summary_of(limits, cost_model(SHAPES["qwen3-8b"], 128, JOB_OVERHEAD), workload)
    assert 50 < summary.shadow_compressions < summary.compressions - 50
    assert summary.stalled_seconds > 0
    assert summary.shadow_stalled_seconds == 0


def crowd(output: Lengths, arrivals: float, hybrid_scheduling: bool) -> Summary:
    """Of requests in a pool with 17 query slots; an output of more than 768 tokens needs one."""
    size = EngineSize(pool_gib=2.5, swap_gib=0, kv_budget=1024, block_size=128, max_num_seqs=64, max_model_len=2304)
    limits = engine_limits(SHAPES["qwen3-8b"], size, {"hybrid_scheduling": hybrid_scheduling})
    workload = generate_workload(150 if arrivals else 32, Lengths(256, 256), output, arrivals, seed=0)
    return summary_of(limits, cost_model(SHAPES["qwen3-8b"], 128, JOB_OVERHEAD), workload)


def test_nobody_begins_who_would_be_preempted_for_all_that_is_known() -> None:
    summary = crowd(Lengths(2048, 2048), 0.0, hybrid_scheduling=True)
    assert (summary.preemptions, summary.without_slot_share) == (0, 0)
    assert summary.p99_tpot < 1.05 * summary.p50_tpot


def test_short_outputs_leave_room_for_requests_without_a_slot() -> None:
    slots_only, hybrid = (crowd(Lengths(16, 1200), 12.0, is_hybrid) for is_hybrid in (False, True))
    assert slots_only.most_running < hybrid.most_running
    assert hybrid.tokens_per_second > 1.03 * slots_only.tokens_per_second
    assert hybrid.mean_ttft < slots_only.mean_ttft


def test_waiting_for_a_query_slot_is_no_stall() -> None:
    # Of one slot: the second request has 14 entries at 9 s and must record the next query; the first ends at 10 s.
    limits = replace(plain_limits(1, 0), num_query_slots=1)
    workload = plain_workload((10, None), (10, None))
    first, second = workload.requests
    workload.events[:] = [(0.0, SubmitTokens([first])), (2.0, SubmitTokens([second]))]
    summary = summary_of(limits, plain_costs(job_seconds=0.0), workload)
    assert (summary.seconds, summary.compressions) == (13.0, 2)
    assert summary.stalled_share == 0
    assert summary.without_slot_share == pytest.approx(1.0 / 21.0)


def test_waiting_for_blocks_is_no_stall() -> None:
    # Of three blocks each has one for its prompt. The first request takes the second block at 1 s, when the other lacks
    # one, and the third at 9 s, when the other is preempted, to start again at 13 s.
    limits = replace(plain_limits(1, 0), num_blocks=3, num_query_slots=0, max_blocks_per_request=0)
    summary = summary_of(limits, plain_costs(job_seconds=0.0), plain_workload((13, 0), (13, 0)))
    assert (summary.seconds, summary.preemptions, summary.recomputed_tokens) == (25.0, 1, 8)
    assert (summary.stalled_share, summary.without_slot_share) == (0, 0)
    assert summary.without_blocks_share == pytest.approx(8.0 / (13 + 9 + 12))


def test_recomputed_tokens() -> None:
    # At 2.5 s the request has computed nine tokens; the tenth is on its way. The prefix cache has the first eight.
    workload = plain_workload((10, 0))
    workload.events.append((2.5, Preempt([0])))
    summary = summary_of(plain_limits(1, 0), plain_costs(job_seconds=1.0), workload)
    assert (summary.preemptions, summary.recomputed_tokens, summary.seconds) == (1, 2, 10.0)
    without_cache = replace(plain_limits(1, 0), prefix_caching=False)
    assert summary_of(without_cache, plain_costs(job_seconds=1.0), workload).recomputed_tokens == 10


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.99) == 4.0
    assert percentile([7.0], 0.99) == 7.0


# ---- costs, workloads and the command --------------------------------------------------------------------------------

COSTS = CostModel(
    weight_bytes=6000,
    entry_bytes=40,
    block_size=8,
    token_seconds=2,
    bandwidth=1000,
    step_overhead=1,
    job_overhead=0.5,
    key_reads=2,
    host_bandwidth=100,
)


@pytest.mark.parametrize(
    ("num_tokens", "num_entries", "seconds"),
    [(1, 0, 1 + 6), (3, 0, 1 + 6), (5, 0, 1 + 10), (1, 100, 1 + 6 + 4), (5, 100, 1 + 10 + 4)],
)
def test_time_of_a_step(num_tokens: int, num_entries: int, seconds: float) -> None:
    """Overhead, the longer of weights and arithmetic, and the entries' keys and values."""
    assert COSTS.step_seconds(num_tokens, num_entries) == pytest.approx(seconds)


def test_time_of_a_job() -> None:
    compression = CompressionJob(0, [1, 2, 3], [1, 2], 24, 0, 24, 0, 0, 16)
    # Keys of 24 entries twice, keys and values of 16 in and out.
    assert COSTS.job_seconds(compression) == pytest.approx(0.5 + (2 * 24 * 20 + 2 * 16 * 40) / 1000)
    swap = SwapOut(0, [1, 2, 3], 0, [5, 6, 7], 0)
    assert COSTS.job_seconds(swap) == pytest.approx(0.5 + 3 * 8 * 40 / 100)


@pytest.mark.parametrize(
    ("shape", "layer_parameters", "bytes_of_entry"),
    [("qwen3-0.6b", 0.440e9, 28 * 8 * 128 * 4), ("qwen3-8b", 6.946e9, 36 * 8 * 128 * 4)],
)
def test_shapes_have_the_published_sizes(shape: str, layer_parameters: float, bytes_of_entry: int) -> None:
    model = SHAPES[shape]
    in_layers = multiplied_parameters(model) - model.vocab_size * model.hidden_size
    assert in_layers == pytest.approx(layer_parameters, rel=1e-3)
    assert entry_bytes(model) == bytes_of_entry
    costs = cost_model(model, 16, 0.0)
    assert (costs.weight_bytes, costs.entry_bytes) == (2 * multiplied_parameters(model), bytes_of_entry)


def test_generated_workloads() -> None:
    workload = generate_workload(50, Lengths(4, 9), Lengths(2, 5), 10.0, seed=3)
    assert workload == generate_workload(50, Lengths(4, 9), Lengths(2, 5), 10.0, seed=3)
    assert workload != generate_workload(50, Lengths(4, 9), Lengths(2, 5), 10.0, seed=4)
    times = [time for time, _ in workload.events]
    assert times == sorted(times)
    assert 2 < times[-1] < 10
    assert {len(request.prompt_token_ids) for request in workload.requests} == set(range(4, 10))
    assert set(workload.output_lengths.values()) == set(range(2, 6))
    assert {request.params.max_tokens for request in workload.requests} == {5}
    assert len({request.prompt_token_ids[0] for request in workload.requests}) == 50
    assert [time for time, _ in generate_workload(50, Lengths(4, 4), Lengths(2, 2), 0.0, seed=3).events] == [0.0]


def test_the_command_compares_policies(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = [
        "--requests",
        "2",
        "--requests",
        "3",
        "--prompt",
        "20",
        "--output-length",
        "90-90",
        "--kv-budget",
        "64",
    ]
    result = CliRunner().invoke(main, [*arguments, "--output", str(output)], catch_exceptions=False)
    assert result.exit_code == 0
    written = json.loads(output.read_text())
    runs = [(run["requests"], run["policy"]) for run in written["results"]]
    assert runs == [(count, policy) for count in (2, 3) for policy in ("paper", "ours", "full KV")]
    assert [line.split()[0] for line in result.output.splitlines()] == ["requests", "2", "2", "2", "3", "3", "3"]
    assert {policy: limits["max_steps_in_flight"] for policy, limits in written["limits"].items()} == {
        "paper": 1,
        "ours": 2,
        "full KV": 2,
    }
    paper, ours, full = written["results"][:3]
    assert paper["compressions"] == ours["shadow_compressions"] == 6
    assert paper["shadow_compressions"] == full["compressions"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "9-3"], "'9-3' is not a range"),
        (["--prompt", "many"], "'many' is not a number"),
        (["--kv-budget", "7"], "kv_budget must be"),
        (["--requests", "0"], "0 is not in the range"),
        (["--pool-gib", "0.001"], "does not hold one request"),
    ],
)
def test_the_command_refuses(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.output
