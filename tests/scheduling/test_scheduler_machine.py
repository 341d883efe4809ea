"""The scheduler under arbitrary orders of events: nothing leaks, nothing is owned twice, everything ends."""

from collections import Counter, deque
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shadow_workers import ShadowWorkers

from zipage.config import ScoringOptions
from zipage.engine_messages import StepResult, TokenRequest
from zipage.sampling_params import SamplingParams
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.recovery import MAX_LOST_STEPS
from zipage.scheduling.request import NEVER
from zipage.scheduling.scheduler import Scheduler

EOS = 2


def draw_limits(data: st.DataObject) -> SchedulerLimits:
    block_size = data.draw(st.sampled_from([8, 16]))
    num_blocks = data.draw(st.one_of(st.integers(4, 40), st.integers(20, 100)))
    budget_blocks = data.draw(st.sampled_from([3, 2, 5, 0]))
    budget_blocks = min(budget_blocks, num_blocks)
    max_num_seqs = data.draw(st.integers(1, 8))
    observe = data.draw(st.sampled_from(["last", "last", "spread", "all"]))
    overlap = data.draw(st.sampled_from([True, True, True, False]))
    num_query_slots = min(max_num_seqs, num_blocks // budget_blocks) if budget_blocks else 0
    return SchedulerLimits(
        num_blocks=num_blocks,
        block_size=block_size,
        num_query_slots=num_query_slots,
        num_query_buffers=num_query_slots + data.draw(st.sampled_from([1, 2, 0, 8])),
        max_blocks_per_request=budget_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=data.draw(st.integers(1, 64)),
        max_model_len=data.draw(st.integers(4, 400)),
        max_steps_in_flight=data.draw(st.integers(1, 3)),
        prefix_caching=data.draw(st.booleans()) and observe != "all",
        scoring=ScoringOptions(
            sinks=2, window=2, observe=observe, pin_share=data.draw(st.sampled_from([0.0, 0.5, 1.0]))
        ),
        compress=data.draw(st.sampled_from(["always", "always", "pressure"])),
        max_shadow_blocks=data.draw(st.sampled_from([0, 4, 30])) if overlap and observe != "all" else 0,
        overlap=overlap,
        hybrid_scheduling=data.draw(st.booleans()),
        num_host_blocks=data.draw(st.sampled_from([60, 8, 0])),
        num_host_slots=data.draw(st.integers(1, 4)),
        max_waiting=data.draw(st.sampled_from([0, 0, 0, 3])),
    )


def draw_other_pool(data: st.DataObject, limits: SchedulerLimits) -> SchedulerLimits:
    """The limits of a decode worker that has come again, perhaps with less or more memory."""
    least = max(4, limits.max_blocks_per_request)
    num_blocks = data.draw(st.one_of(st.just(limits.num_blocks), st.integers(least, 100)))
    slots = num_blocks // limits.max_blocks_per_request if limits.max_blocks_per_request else 0
    slots = min(limits.max_num_seqs, slots)
    return replace(
        limits,
        num_blocks=num_blocks,
        num_query_slots=slots,
        num_query_buffers=slots + limits.num_query_buffers - limits.num_query_slots,
        num_host_blocks=data.draw(st.sampled_from([60, 8, 0])),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Submit, plan, finish steps and jobs, abort, and lose workers, in any order."""

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.limits = draw_limits(data)
        self.scheduler = Scheduler(self.limits)
        self.workers = ShadowWorkers(self.limits)
        self.results: deque[StepResult] = deque()
        # Requests of each step that has not returned, those of steps that no decode worker has received among them.
        self.in_flight: deque[set[int]] = deque()
        self.lost_steps: Counter[int] = Counter()
        self.asked: dict[int, TokenRequest] = {}
        # Jobs with which the compression worker dies, and steps with which the decode worker does; the next one is
        # there at once.
        self.job_deaths = data.draw(st.sets(st.integers(0, 40), max_size=6))
        self.step_deaths = data.draw(st.sets(st.integers(0, 400), max_size=3))
        self.next_pool = draw_other_pool(data, self.limits)
        self.num_jobs = self.num_steps = 0
        # Whether each worker is there, and whether the scheduler is told to send to it.
        self.has_decode = self.has_compression = self.takes_steps = self.takes_jobs = True
        self.live: set[int] = set()
        self.next_uid = 0
        self.now = 0.0

    @rule(lengths=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 150)), min_size=1, max_size=4))
    def submit(self, lengths: list[tuple[int, int]]) -> None:
        requests = []
        for prompt, output in lengths:
            own_budget = self.limits.block_size * (output % 4 + 2) if output % 2 else 0
            if not self.limits.num_query_slots or own_budget > self.limits.pool_tokens or output % 5 == 0:
                own_budget = None
            params = SamplingParams(
                seed=self.next_uid,
                max_tokens=output,
                ignore_eos=output % 3 == 0,
                kv_budget=own_budget,
                priority=prompt % 7 // 5,
                deadline=output / 10 if output % 17 == 0 else None,
            )
            # Prompts of one of two kinds, so that many begin alike.
            tokens = [5 if index < 40 else 3 + prompt % 2 for index in range(prompt)]
            requests.append(TokenRequest(self.next_uid, tokens, params, (EOS,)))
            self.next_uid += 1
        self.asked |= {request.uid: request for request in requests}
        refusals = {refusal.uid: refusal for refusal in self.scheduler.add(requests, self.now)}
        for request in requests:
            refusal, length = refusals.get(request.uid), len(request.prompt_token_ids)
            fits = length < self.limits.max_model_len
            fits &= length <= self.limits.pool_tokens or self.limits.max_blocks(request.params) > 0
            if fits and refusal is not None:
                assert self.limits.max_waiting
                assert "max_waiting" in refusal.message
            assert fits or refusal is not None
        refused = set(refusals)
        self.live |= {request.uid for request in requests} - refused

    @rule(
        events=st.lists(st.integers(0, 3), min_size=3, max_size=8),
        rounds=st.integers(1, 40),
        token_ids=st.lists(st.sampled_from([5] * 20 + [6, EOS]), min_size=1, max_size=3),
    )
    def go_on(self, events: list[int], rounds: int, token_ids: list[int]) -> None:
        """Plan steps and jobs and finish them, in any order that the workers could have."""
        for event in [*events, 0, 2, 1] * rounds:
            if event == 0:
                self.plan(token_ids)
            elif event == 1 and self.results:
                self.finish_step()
            elif event == 2:
                self.send_jobs()
            elif event == 3 and self.workers.jobs and self.has_compression:
                self.finish_job(list(self.workers.jobs)[rounds % len(self.workers.jobs)])
            self.check()

    def plan(self, token_ids: list[int]) -> None:
        step = self.scheduler.plan() if self.takes_steps else None
        if step is None:
            num_failed = self.scheduler.counters.failed_jobs
            self.send_jobs()
            is_stuck = self.live and not self.workers.jobs and not self.results
            # A job that has failed may have left room.
            is_stuck = is_stuck and self.scheduler.counters.failed_jobs == num_failed
            assert not is_stuck or not self.has_both, "requests are left, but nothing is planned"
            return
        rows = {work.row for work in step.work}
        self.in_flight.append({request.uid for request in self.scheduler.lives.running if request.row in rows})
        assert len(self.in_flight) <= self.limits.max_steps_in_flight
        if self.has_decode:
            self.results.append(self.workers.execute(step, token_ids))
            self.num_steps += 1
            if self.num_steps in self.step_deaths:
                self.results.clear()
                self.restart_decode(self.next_pool)

    def send_jobs(self) -> None:
        jobs = self.scheduler.plan_jobs() if self.takes_jobs else []
        if not self.has_compression:
            return
        self.workers.accept(jobs)
        numbers = range(self.num_jobs, self.num_jobs + len(jobs))
        self.num_jobs += len(jobs)
        if self.job_deaths & set(numbers):
            self.restart_compression({uid for uid in self.workers.jobs if (uid + self.num_jobs) % 2})
            self.send_jobs()

    @property
    def has_both(self) -> bool:
        return self.has_decode and self.has_compression

    def finish_step(self) -> None:
        result = self.results.popleft()
        self.in_flight.popleft()
        outputs = self.scheduler.finish_step(result, self.now)
        self.workers.returned(result.step_id)
        for output in outputs:
            assert output.uid in self.live
            if output.finish_reason is not None:
                self.live.remove(output.uid)

    def finish_job(self, uid: int) -> None:
        assert self.scheduler.finish_job(self.workers.finish(uid), self.now) == []

    @precondition(lambda self: self.workers.jobs and self.has_compression)
    @rule(data=st.data())
    def fail_job(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.workers.jobs)))
        for output in self.scheduler.finish_job(self.workers.fail(uid), self.now):
            assert output.finish_reason == "error"
            self.live.remove(output.uid)

    @precondition(lambda self: self.has_both and self.live)
    @rule(is_noticed=st.booleans())
    def lose_compression(self, is_noticed: bool) -> None:
        self.has_compression, self.takes_jobs = False, not is_noticed

    @precondition(lambda self: self.has_decode and not self.has_compression)
    @rule(data=st.data())
    def compression_returns(self, data: st.DataObject) -> None:
        self.restart_compression({uid for uid in sorted(self.live) if data.draw(st.booleans())})

    def restart_compression(self, unfinished: set[int]) -> None:
        self.workers.restart_compression(unfinished)
        self.has_compression = self.takes_jobs = True
        for output in self.scheduler.resend_jobs(unfinished, self.now):
            assert output.finish_reason == "error"
            self.live.remove(output.uid)
        assert not self.scheduler.lives.at_work

    @precondition(lambda self: self.has_decode and self.live)
    @rule(is_noticed=st.booleans())
    def lose_decode(self, is_noticed: bool) -> None:
        self.plan([5])
        self.has_decode, self.takes_steps = False, not is_noticed
        self.results.clear()

    @precondition(lambda self: not self.has_decode)
    @rule(data=st.data())
    def both_return(self, data: st.DataObject) -> None:
        self.restart_decode(draw_other_pool(data, self.limits))

    def restart_decode(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.lost_steps.update(set[int]().union(*self.in_flight))
        self.in_flight.clear()
        self.has_decode = self.has_compression = self.takes_steps = self.takes_jobs = True
        self.workers = ShadowWorkers(limits)
        tokens = {uid: list(request.token_ids) for uid, request in self.scheduler.lives.unfinished.items()}
        outputs = self.scheduler.start_over(limits, self.now)
        assert self.scheduler.resend_jobs(self.live, self.now) == []
        for output in outputs:
            assert output.finish_reason == "error"
            request, lost_steps = self.asked[output.uid], self.lost_steps[output.uid]
            fits = limits.refusal(request) is None and len(tokens[output.uid]) < limits.max_length(request)
            assert lost_steps > MAX_LOST_STEPS or not fits
        kept = {uid: request.token_ids for uid, request in self.scheduler.lives.unfinished.items()}
        assert kept == {uid: tokens[uid] for uid in kept}
        self.live -= {output.uid for output in outputs}
        assert set(kept) == self.live
        assert self.scheduler.num_waiting == len(self.live)
        assert all(self.lost_steps[uid] <= MAX_LOST_STEPS for uid in self.live)
        assert self.scheduler.holdings.blocks.num_used == 0

    @precondition(lambda self: self.scheduler.num_running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        running = [request.uid for request in self.scheduler.lives.running]
        self.scheduler.preempt(data.draw(st.lists(st.sampled_from(running), min_size=1, max_size=4)))

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for output in self.scheduler.expire(self.now):
            assert output.finish_reason == "deadline"
            self.live.remove(output.uid)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        uids = data.draw(st.lists(st.integers(0, self.next_uid + 1), max_size=2, unique=True))
        ended = self.scheduler.abort(uids, self.now)
        assert {output.uid for output in ended} == self.live & set(uids)
        self.live -= set(uids)

    @invariant()
    def is_sound(self) -> None:
        if hasattr(self, "scheduler"):
            self.check()

    def check(self) -> None:
        assert self.scheduler.integrity_errors() == []
        limits = self.limits
        for request in self.scheduler.lives.running:
            if limits.compress == "always" and request.next_compression != NEVER:
                # Its budget and a chunk of its prompt; behind a shadow job, also one that has failed, one block more.
                chunk = limits.max_num_batched_tokens // limits.block_size
                behind = request.job is not None or request.is_broken
                assert len(request.block_table) <= request.max_blocks + chunk + behind

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        if not self.has_decode:
            self.restart_decode(self.limits)
        if not self.has_compression:
            self.restart_compression(set())
        for _ in range(100_000):
            self.send_jobs()
            if self.results:
                self.finish_step()
            elif self.workers.jobs:
                self.finish_job(min(self.workers.jobs))
            elif not self.live and self.scheduler.is_idle:
                break
            else:
                self.plan([5, 6])
        assert not self.live
        assert self.scheduler.is_idle
        held = self.scheduler.holdings
        for pool in (held.blocks, held.buffers, held.rows, held.host_blocks, held.host_slots):
            assert pool.num_used == 0
        assert (held.reserved_blocks, held.slots_used) == (0, 0)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=400, stateful_step_count=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
