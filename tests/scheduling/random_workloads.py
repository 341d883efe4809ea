"""Random small workloads for the simulated scheduler, each named by its seed, and what must hold of every answer."""

import random
from collections import Counter
from dataclasses import dataclass, field

from tools.simulation.cost_model import CostModel
from tools.simulation.decode_rows import EOS, FIRST_TOKEN
from tools.simulation.simulation import DEADLINE_CHECK_SECONDS, Received, Sent
from tools.simulation.workload import Event, Preempt, Workload
from zipage.config import Observe, ScoringOptions
from zipage.engine_messages import (
    AbortTokens,
    CompressionDone,
    CompressionJob,
    JobFailed,
    RefusedTokens,
    Step,
    StepResult,
    SubmitTokens,
    SwapDone,
    SwapIn,
    SwapOut,
    TokenOutput,
    TokenOutputs,
    TokenRequest,
)
from zipage.sampling_params import SamplingParams
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.scheduler import MAX_FAILED_JOBS, Scheduler


def random_limits(numbers: random.Random) -> SchedulerLimits:
    num_blocks, max_num_seqs = numbers.randint(4, 40), numbers.randint(1, 8)
    budget_blocks = min(numbers.choice([0, 2, 2, 3, 3, 5]), num_blocks)
    observe: Observe = numbers.choice(["last", "last", "spread", "all"])
    overlap = numbers.random() < 0.8
    num_query_slots = min(max_num_seqs, num_blocks // budget_blocks) if budget_blocks else 0
    return SchedulerLimits(
        num_blocks=num_blocks,
        block_size=8,
        num_query_slots=num_query_slots,
        num_query_buffers=num_query_slots + numbers.choice([0, 1, 2, 8]),
        max_blocks_per_request=budget_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=numbers.randint(1, 64),
        max_model_len=numbers.choice([20, 400, 400, 400]),
        max_steps_in_flight=numbers.randint(1, 3),
        prefix_caching=observe != "all" and numbers.random() < 0.7,
        scoring=ScoringOptions(sinks=2, window=2, observe=observe),
        compress=numbers.choice(["always", "pressure"]),
        max_shadow_blocks=numbers.choice([0, 2, 8]) if overlap and observe != "all" else 0,
        overlap=overlap,
        hybrid_scheduling=numbers.random() < 0.6,
        num_host_blocks=numbers.choice([0, 8, 30]),
        num_host_slots=numbers.randint(1, 4),
        max_waiting=numbers.choice([0, 0, 0, 3]),
    )


def random_costs(numbers: random.Random) -> CostModel:
    """Steps of about 10 ms; jobs that are much shorter, or much longer."""
    return CostModel(
        weight_bytes=numbers.choice([0, 5e-3]),
        entry_bytes=numbers.choice([0, 1e-5]),
        block_size=8,
        token_seconds=1e-4,
        bandwidth=1.0,
        message_latency=numbers.choice([0.0, 1e-4, 7e-3]),
        scheduling_seconds=numbers.choice([0.0, 1e-5, 2e-3]),
        step_overhead=numbers.choice([1e-3, 1e-2]),
        job_overhead=numbers.choice([1e-4, 8e-3, 0.1]),
        host_bandwidth=numbers.choice([1.0, 1e-2]),
    )


def random_request(uid: int, numbers: random.Random, limits: SchedulerLimits) -> TokenRequest:
    prompt_length, kind = numbers.choice([5, 20, 20, 60]), numbers.randint(0, 1)
    # Prompts of one of two kinds, so that many begin alike.
    prompt = [5 if index < 16 else kind for index in range(numbers.randint(1, prompt_length))]
    own_budgets = [None, None, 0, 24, 40] if limits.num_query_slots else [None, 0]
    params = SamplingParams(
        max_tokens=numbers.randint(1, 90),
        ignore_eos=numbers.random() < 0.3,
        kv_budget=numbers.choice(own_budgets),
        priority=numbers.choice([0, 0, 0, 1, 2]),
        deadline=numbers.uniform(0.01, 1.0) if numbers.random() < 0.1 else None,
        seed=uid,
    )
    return TokenRequest(uid, prompt, params, (EOS,))


def random_workload(numbers: random.Random, limits: SchedulerLimits) -> Workload:
    count = numbers.randint(1, 9)
    requests = [random_request(uid, numbers, limits) for uid in range(count)]
    spread = numbers.choice([0.0, 0.3, 1.0])
    events: list[tuple[float, Event]] = [
        (numbers.uniform(0, spread), SubmitTokens(requests[start : start + 3])) for start in range(0, count, 3)
    ]
    events += [
        (numbers.uniform(0, 1 + spread), AbortTokens([numbers.randrange(count)]))
        for _ in range(numbers.choice([0, 0, 1, 2]))
    ]
    events += [
        (numbers.uniform(0, 1 + spread), Preempt(numbers.choices(range(count), k=2)))
        for _ in range(numbers.choice([0, 0, 3, 12]))
    ]
    failing = numbers.choice([0.0, 0.0, 0.0, 0.1, 0.6])
    failing_jobs = frozenset(number for number in range(40) if numbers.random() < failing)
    return Workload(events, {uid: numbers.randint(1, 120) for uid in range(count)}, failing_jobs)


def random_case(seed: int) -> tuple[SchedulerLimits, CostModel, Workload]:
    numbers = random.Random(seed)
    limits = random_limits(numbers)
    return limits, random_costs(numbers), random_workload(numbers, limits)


@dataclass
class Checker:
    """Holds every answer of the scheduler against what was asked."""

    limits: SchedulerLimits
    workload: Workload
    asked: dict[int, tuple[TokenRequest, float]] = field(default_factory=dict)
    aborted: set[int] = field(default_factory=set)
    failures: Counter[int] = field(default_factory=Counter)
    num_tokens: Counter[int] = field(default_factory=Counter)
    ended: set[int] = field(default_factory=set)
    num_events: int = 0
    stalled: float = 0.0
    steps_in_flight: int = 0
    jobs_at_work: int = 0

    def received(self, message: Received, now: float) -> None:
        match message:
            case SubmitTokens(requests):
                self.asked |= {request.uid: (request, now) for request in requests}
            case AbortTokens(uids):
                self.aborted |= set(uids)
            case StepResult():
                self.steps_in_flight -= 1
            case JobFailed(uid):
                self.failures[uid] += 1
                self.jobs_at_work -= 1
            case CompressionDone() | SwapDone():
                self.jobs_at_work -= 1

    def sent(self, message: Sent, now: float) -> None:
        match message:
            case TokenOutputs(outputs):
                for output in outputs:
                    self._check_output(output, now)
            case RefusedTokens():
                self._check_refusal(message)
            case Step():
                self.steps_in_flight += 1
            case CompressionJob() | SwapOut() | SwapIn():
                self.jobs_at_work += 1
        assert self.limits.overlap or not (self.steps_in_flight and self.jobs_at_work), "a step runs beside a job"

    def settled(self, scheduler: Scheduler, now: float) -> None:
        self.num_events += 1
        if self.num_events % 8 == 0:
            assert scheduler.integrity_errors() == []

    def _check_refusal(self, refusal: RefusedTokens) -> None:
        request, _ = self.asked[refusal.uid]
        length, limits = len(request.prompt_token_ids), self.limits
        is_too_long = length >= limits.max_model_len
        is_too_long |= length > limits.pool_tokens and not limits.max_blocks(request.params)
        has_no_room = (request.params.kv_budget or 0) > limits.pool_tokens
        assert is_too_long or has_no_room or (limits.max_waiting and "max_waiting" in refusal.message)
        self.ended.add(refusal.uid)

    def _check_output(self, output: TokenOutput, now: float) -> None:
        uid, natural_length = output.uid, self.workload.output_lengths[output.uid]
        assert uid not in self.ended, "an answer after the end"
        if output.token is not None:
            index = self.num_tokens[uid]
            assert output.token.token_id == (EOS if index + 1 == natural_length else FIRST_TOKEN + index)
            self.num_tokens[uid] += 1
        if output.finish_reason is not None:
            self._check_end(output, natural_length, now)
            self.ended.add(uid)

    def _check_end(self, output: TokenOutput, natural_length: int, now: float) -> None:
        request, arrived = self.asked[output.uid]
        reason, num_tokens, deadline = output.finish_reason, self.num_tokens[output.uid], request.params.deadline
        most = self.limits.max_length(request) - len(request.prompt_token_ids)
        stops = natural_length <= most and not request.params.ignore_eos
        expected = natural_length if stops else most
        if reason == ("stop" if stops else "length"):
            assert num_tokens == expected
            # Looking for passed deadlines may have to wait until the scheduler has planned its steps.
            assert deadline is None or now < arrived + deadline + 2 * DEADLINE_CHECK_SECONDS
        else:
            assert num_tokens < expected
            assert (
                (reason == "abort" and output.uid in self.aborted)
                or (reason == "deadline" and deadline is not None and now >= arrived + deadline)
                or (reason == "error" and self.failures[output.uid] > MAX_FAILED_JOBS)
            )
        assert output.metrics is not None
        assert output.metrics.output_tokens == num_tokens
        assert output.metrics.prompt_tokens == len(request.prompt_token_ids)
        assert 0 <= output.metrics.shadow_stalled <= output.metrics.stalled <= output.metrics.finished - arrived
        self.stalled += output.metrics.stalled
