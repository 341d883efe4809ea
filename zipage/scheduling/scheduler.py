"""The only owner of blocks, query slots, rows and block tables: admits, plans, orders compressions, ends requests.

It has no clock, no sockets and no torch: a worker feeds it messages with the time and sends on what it returns, and so
can a test or a simulator.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from zipage.messages import (
    Admission,
    CompressionDone,
    CompressionJob,
    RefusedTokens,
    RowWork,
    SampledToken,
    Step,
    StepResult,
    TableUpdate,
    TokenOutput,
    TokenRequest,
)
from zipage.scheduling.compression import count_compression, make_job, must_compress
from zipage.scheduling.holdings import Holdings
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.request import Request, RequestState
from zipage.scheduling.stopping import ending_after


@dataclass
class Counters:
    """Totals since the engine started; `cached_tokens` are those of prompts that were not computed again."""

    steps: int = 0
    compressions: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class Scheduler:
    """First come, first served continuous batching over a block pool, with compression in stall mode.

    Under a budget no request that runs can lack a block for good. Without a budget admission is optimistic: where
    blocks run out, the newest request is preempted and later recomputed.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.holdings = Holdings(limits)
        self.counters = Counters()
        self._requests: dict[int, Request] = {}
        self._waiting: deque[Request] = deque()
        # Requests that hold a row, in order of admission.
        self._running: dict[int, Request] = {}
        # Ended requests whose blocks a step or a job still touches.
        self._draining: dict[int, Request] = {}
        self._next_step = _NextStep()
        # Planned steps that have not returned, oldest first.
        self._in_flight: deque[_PlannedStep] = deque()

    # ---- requests in ------------------------------------------------------------------------------------------------

    def add(self, requests: Iterable[TokenRequest], now: float) -> list[RefusedTokens]:
        """Queue requests in order; returns those that can never run here, of which nothing is kept."""
        refused = []
        for message in requests:
            refusal = self.limits.refusal(message)
            if refusal is not None:
                refused.append(refusal)
                continue
            max_length, max_blocks = self.limits.max_length(message), self.limits.max_blocks(message.params)
            request = Request.from_message(message, max_length, max_blocks, now)
            self._requests[request.uid] = request
            self._waiting.append(request)
            self.counters.prompt_tokens += request.prompt_length
        return refused

    def abort(self, uids: Iterable[int], now: float) -> list[TokenOutput]:
        """End requests; each live one answers with reason `abort`, the others are ignored."""
        outputs = []
        for uid in uids:
            request = self._requests.get(uid)
            if request is None:
                continue
            if request.state is RequestState.WAITING:
                self._waiting.remove(request)
            self._end(request, RequestState.ABORTED, now)
            outputs.append(TokenOutput(uid, None, "abort", None, request.metrics()))
        return outputs

    # ---- steps ------------------------------------------------------------------------------------------------------

    def plan(self) -> Step | None:
        """The next step, or None where enough are in flight or nothing can be computed.

        A step that is planned before the tokens of the last one are back feeds them to itself in the decode worker.
        Where a request turns out to have ended, such a step has computed one token for nothing, which is dropped.
        """
        if len(self._in_flight) >= self.limits.max_steps_in_flight:
            return None
        self._preempt_paused()
        tokens_left = self.limits.max_num_batched_tokens
        for state in (RequestState.RUNNING, RequestState.PREFILLING):
            for request in list(self._running.values()):
                if tokens_left and request.state is state:
                    tokens_left -= self._plan_request(request, tokens_left)
        while tokens_left and self._can_admit_next():
            request = self._waiting.popleft()
            self._admit(request)
            tokens_left -= self._plan_request(request, tokens_left)
        if not self._next_step.planned:
            self._next_step.is_short = False
            return None
        step = self._next_step.build(self.counters.steps)
        self._in_flight.append(_PlannedStep(step.step_id, self._next_step.planned))
        self._next_step = _NextStep()
        self.counters.steps += 1
        return step

    def plan_jobs(self) -> list[CompressionJob]:
        """Compressions that can begin: their requests have filled their budget, and no step touches them."""
        jobs = []
        for request in self._running.values():
            if request.in_flight or not must_compress(request, self.limits):
                continue
            if self.holdings.prepare_compression(request):
                request.move_to(RequestState.COMPRESSING)
                request.job_in_flight = True
                jobs.append(make_job(request, self.limits))
        return jobs

    def finish_step(self, result: StepResult, now: float) -> list[TokenOutput]:
        """Take the tokens of the oldest step in flight; returns what the tokenizer is told of them."""
        outputs = []
        if not self._in_flight or self._in_flight[0].step_id != result.step_id:
            raise RuntimeError(f"step {result.step_id} returned out of order")
        sampled = dict(zip(result.rows, result.tokens, strict=True))
        for request in self._in_flight.popleft().requests:
            request.in_flight -= 1
            token = sampled.get(request.row)
            if token is not None:
                request.pending_tokens -= 1
            if request.is_ended:
                self._release_when_quiet(request)
            elif token is not None:
                outputs.append(self._take_token(request, token, now))
        return outputs

    def finish_compression(self, done: CompressionDone) -> None:
        """Take a finished job: the request goes on with its survivors, or gives everything back if it was aborted."""
        request = self._running.get(done.uid) or self._draining[done.uid]
        request.job_in_flight = False
        self.counters.compressions += 1
        if request.is_ended:
            self._release_when_quiet(request)
            return
        self.holdings.adopt_next_table(request)
        self._next_step.table_updates.append(count_compression(request, done, self.limits))
        request.move_to(RequestState.RUNNING)

    # ---- what it holds ----------------------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_compressing(self) -> int:
        return sum(request.state is RequestState.COMPRESSING for request in self._running.values())

    @property
    def is_idle(self) -> bool:
        """Nothing waits, runs or drains."""
        return not (self._requests or self._draining or self._in_flight)

    def integrity_errors(self) -> list[str]:
        """What is wrong with the ownership of blocks, slots and rows; empty for a sound engine."""
        return self.holdings.integrity_errors(self._holders())

    def _holders(self) -> list[Request]:
        return [*self._running.values(), *self._draining.values()]

    # ---- planning one request ---------------------------------------------------------------------------------------

    def _can_admit_next(self) -> bool:
        """Nobody is admitted to blocks that an older request has just asked for in vain."""
        if self._next_step.is_short or not self._waiting:
            return False
        return self.holdings.can_admit(self._waiting[0], self._holders())

    def _admit(self, request: Request) -> None:
        request.move_to(RequestState.PREFILLING)
        self._next_step.admissions.append(self.holdings.admit(request))
        self._running[request.uid] = request
        if not request.preemptions:
            self.counters.cached_tokens += request.position

    def _plan_request(self, request: Request, tokens_left: int) -> int:
        """Plan the request's next tokens; returns how many (0 where it has to wait for a block)."""
        if request.is_paused or request.is_complete or must_compress(request, self.limits):
            return 0
        num_tokens = min(request.num_uncomputed, tokens_left)
        missing = self.limits.blocks_for(request.resident_length + num_tokens) - len(request.block_table)
        if not self._make_room(request, missing):
            self._next_step.is_short = True
            return 0
        new_blocks = self.holdings.extend(request, missing)
        request.position += num_tokens
        request.resident_length += num_tokens
        request.in_flight += 1
        if request.num_uncomputed == 0:
            request.pending_tokens += 1
            if request.state is RequestState.PREFILLING:
                request.move_to(RequestState.RUNNING)
        self.holdings.register_full_blocks(request)
        self._next_step.planned.append(request)
        self._next_step.work.append(RowWork(request.row, num_tokens, new_blocks))
        return num_tokens

    def _make_room(self, request: Request, wanted: int) -> bool:
        """Preempt requests admitted after this one until `wanted` blocks are free.

        The oldest request can preempt every other, so it never waits for ever; a budget's reservations make sure that
        nothing is ever preempted under one.
        """
        while self.holdings.blocks.num_free < wanted:
            victim = next(reversed(self._running.values()))
            if victim is request or self.limits.max_blocks_per_request:
                return False
            if victim.in_flight:
                victim.is_paused = True
                return False
            self._preempt(victim)
        return True

    def _preempt_paused(self) -> None:
        """Preempt the requests whose blocks are wanted, once no step touches them."""
        for request in list(self._running.values()):
            if request.is_paused and not request.in_flight:
                self._preempt(request)

    def _preempt(self, request: Request) -> None:
        """Give back all that the request holds and put it first in the queue, to be recomputed from its tokens."""
        del self._running[request.uid]
        self._release(request)
        request.position = request.resident_length = 0
        request.is_paused = False
        request.preemptions += 1
        self.counters.preemptions += 1
        request.move_to(RequestState.WAITING)
        self._waiting.appendleft(request)

    # ---- tokens and ends --------------------------------------------------------------------------------------------

    def _take_token(self, request: Request, token: SampledToken, now: float) -> TokenOutput:
        request.token_ids.append(token.token_id)
        self.counters.output_tokens += 1
        if request.num_output_tokens == 1:
            request.first_token = now
        self.holdings.register_full_blocks(request)
        ending = ending_after(request)
        if ending is None:
            return TokenOutput(request.uid, token)
        self._end(request, RequestState.FINISHED, now)
        return TokenOutput(request.uid, token, ending.reason, ending.stop_token_id, request.metrics())

    def _end(self, request: Request, state: RequestState, now: float) -> None:
        request.move_to(state)
        request.finished = now
        del self._requests[request.uid]
        if self._running.pop(request.uid, None) is not None:
            self._draining[request.uid] = request
            self._release_when_quiet(request)

    def _release_when_quiet(self, request: Request) -> None:
        """Free what an ended request holds once no step and no job touches it."""
        if not request.in_flight and not request.job_in_flight:
            del self._draining[request.uid]
            self._release(request)

    def _release(self, request: Request) -> None:
        self._next_step.release_row(self.holdings.release(request))


@dataclass(frozen=True)
class _PlannedStep:
    """A step that has not returned, and the requests that it touches."""

    step_id: int
    requests: list[Request]


@dataclass
class _NextStep:
    """What the next step will carry; rows are released in it before any is given out again."""

    released_rows: list[int] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    table_updates: list[TableUpdate] = field(default_factory=list)
    work: list[RowWork] = field(default_factory=list)
    planned: list[Request] = field(default_factory=list)
    # A request has found no blocks for its next tokens.
    is_short: bool = False

    def release_row(self, row: int) -> None:
        """Take back a row; one whose admission has not been sent is unknown to the decode worker."""
        admissions = [admission for admission in self.admissions if admission.row != row]
        if len(admissions) == len(self.admissions):
            self.released_rows.append(row)
        self.admissions = admissions
        self.table_updates = [update for update in self.table_updates if update.row != row]

    def build(self, step_id: int) -> Step:
        return Step(step_id, self.released_rows, self.admissions, self.table_updates, self.work)
