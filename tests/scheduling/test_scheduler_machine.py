"""The scheduler under arbitrary orders of events: nothing leaks, nothing is owned twice, everything ends."""

from collections import deque

import hypothesis.strategies as st
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shadow_workers import ShadowWorkers

from zipage.config import ScoringOptions
from zipage.messages import StepResult, TokenRequest
from zipage.sampling_params import SamplingParams
from zipage.scheduling.limits import SchedulerLimits
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
        scoring=ScoringOptions(sinks=2, window=2, observe=observe, pin_prompt=data.draw(st.booleans())),
        compress=data.draw(st.sampled_from(["always", "always", "pressure"])),
        max_shadow_blocks=data.draw(st.sampled_from([0, 4, 30])) if overlap and observe != "all" else 0,
        overlap=overlap,
        hybrid_scheduling=data.draw(st.booleans()),
        num_host_blocks=data.draw(st.sampled_from([60, 8, 0])),
        num_host_slots=data.draw(st.integers(1, 4)),
        max_waiting=data.draw(st.sampled_from([0, 0, 0, 3])),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Submit, plan, finish steps and jobs, and abort, in any order."""

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.limits = draw_limits(data)
        self.scheduler = Scheduler(self.limits)
        self.workers = ShadowWorkers(self.limits)
        self.results: deque[StepResult] = deque()
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
        for event in events * rounds:
            if event == 0:
                self.plan(token_ids)
            elif event == 1 and self.results:
                self.finish_step()
            elif event == 2:
                self.workers.accept(self.scheduler.plan_jobs())
            elif event == 3 and self.workers.jobs:
                self.finish_job(list(self.workers.jobs)[rounds % len(self.workers.jobs)])
            self.check()

    def plan(self, token_ids: list[int]) -> None:
        step = self.scheduler.plan()
        if step is not None:
            self.results.append(self.workers.execute(step, token_ids))
            assert len(self.results) <= self.limits.max_steps_in_flight
        else:
            self.workers.accept(self.scheduler.plan_jobs())
            assert not self.live or self.workers.jobs or self.results, "requests are left, but nothing is planned"

    def finish_step(self) -> None:
        result = self.results.popleft()
        outputs = self.scheduler.finish_step(result, self.now)
        self.workers.returned(result.step_id)
        for output in outputs:
            assert output.uid in self.live
            if output.finish_reason is not None:
                self.live.remove(output.uid)

    def finish_job(self, uid: int) -> None:
        assert self.scheduler.finish_job(self.workers.finish(uid), self.now) == []

    @precondition(lambda self: self.workers.jobs)
    @rule(data=st.data())
    def fail_job(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.workers.jobs)))
        for output in self.scheduler.finish_job(self.workers.fail(uid), self.now):
            assert output.finish_reason == "error"
            self.live.remove(output.uid)

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
                # Its budget and a chunk of its prompt; behind a shadow job one block more.
                chunk = limits.max_num_batched_tokens // limits.block_size
                assert len(request.block_table) <= request.max_blocks + chunk + (request.job is not None)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(100_000):
            self.workers.accept(self.scheduler.plan_jobs())
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
