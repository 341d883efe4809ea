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
from zipage.scheduling.scheduler import Scheduler

EOS = 2


def draw_limits(data: st.DataObject) -> SchedulerLimits:
    block_size = data.draw(st.sampled_from([8, 16]))
    num_blocks = data.draw(st.integers(4, 40))
    budget_blocks = data.draw(st.sampled_from([0, 2, 3, 5]))
    budget_blocks = min(budget_blocks, num_blocks)
    max_num_seqs = data.draw(st.integers(1, 8))
    return SchedulerLimits(
        num_blocks=num_blocks,
        block_size=block_size,
        num_query_slots=min(max_num_seqs, num_blocks // budget_blocks) if budget_blocks else 0,
        max_blocks_per_request=budget_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=data.draw(st.integers(1, 64)),
        max_model_len=data.draw(st.integers(4, 400)),
        max_steps_in_flight=data.draw(st.integers(1, 3)),
        prefix_caching=data.draw(st.booleans()),
        scoring=ScoringOptions(sinks=2, window=2),
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

    @rule(lengths=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 150)), min_size=1, max_size=4))
    def submit(self, lengths: list[tuple[int, int]]) -> None:
        requests = []
        for prompt, output in lengths:
            own_budget = self.limits.block_size * (output % 4 + 2) if output % 2 else 0
            if not self.limits.num_query_slots or own_budget > self.limits.pool_tokens or output % 5 == 0:
                own_budget = None
            params = SamplingParams(max_tokens=output, ignore_eos=output % 3 == 0, kv_budget=own_budget)
            # Prompts of one of two kinds, so that many begin alike.
            tokens = [5 if index < 40 else 3 + prompt % 2 for index in range(prompt)]
            requests.append(TokenRequest(self.next_uid, tokens, params, (EOS,)))
            self.next_uid += 1
        refused = {refusal.uid for refusal in self.scheduler.add(requests, 0.0)}
        for request in requests:
            fits = len(request.prompt_token_ids) < self.limits.max_model_len
            fits &= len(request.prompt_token_ids) <= self.limits.pool_tokens
            assert (request.uid in refused) != fits
        self.live |= {request.uid for request in requests} - refused

    @rule(token_ids=st.lists(st.sampled_from([EOS, 5, 5, 5, 5, 6]), min_size=1, max_size=3))
    def plan(self, token_ids: list[int]) -> None:
        step = self.scheduler.plan()
        if step is not None:
            self.results.append(self.workers.execute(step, token_ids))
            assert len(self.results) <= self.limits.max_steps_in_flight
        else:
            self.plan_jobs()
            assert not self.live or self.workers.jobs or self.results, "requests are left, but nothing is planned"

    @precondition(lambda self: self.results)
    @rule()
    def finish_step(self) -> None:
        result = self.results.popleft()
        outputs = self.scheduler.finish_step(result, 1.0)
        self.workers.returned(result.step_id)
        for output in outputs:
            assert output.uid in self.live
            if output.finish_reason is not None:
                self.live.remove(output.uid)

    @rule()
    def plan_jobs(self) -> None:
        self.workers.accept(self.scheduler.plan_jobs())

    @precondition(lambda self: self.workers.jobs)
    @rule(data=st.data())
    def finish_job(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.workers.jobs)))
        self.scheduler.finish_compression(self.workers.finish(uid))

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        uids = data.draw(st.lists(st.integers(0, self.next_uid + 1), max_size=2, unique=True))
        ended = self.scheduler.abort(uids, 1.0)
        assert {output.uid for output in ended} == self.live & set(uids)
        self.live -= set(uids)

    @invariant()
    def is_sound(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        assert self.scheduler.integrity_errors() == []
        for request in self.scheduler._running.values():
            budget = request.max_blocks
            if budget and request.query_slot >= 0:
                longest = max(budget, self.limits.blocks_for(request.prompt_length))
                assert len(request.block_table) <= (budget if request.compressions else longest)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(500_000):
            self.plan_jobs()
            if self.results:
                self.finish_step()
            elif self.workers.jobs:
                self.scheduler.finish_compression(self.workers.finish(min(self.workers.jobs)))
            elif (step := self.scheduler.plan()) is not None:
                self.results.append(self.workers.execute(step, [5, 6]))
            else:
                break
        assert not self.live
        assert self.scheduler.is_idle
        for pool in (self.scheduler.holdings.blocks, self.scheduler.holdings.slots, self.scheduler.holdings.rows):
            assert pool.num_used == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
