"""The only owner of blocks, query buffers, rows and block tables: admits, plans, orders compressions, ends requests.

It has no clock, no sockets and no torch: a worker feeds it messages with the time and sends on what it returns, and so
can a test or a simulator. Steps are planned right after such an event, at its time.
"""

import heapq
from collections import deque
from collections.abc import Collection, Iterable

from zipage.engine_messages import (
    CompressionDone,
    Job,
    JobAnswer,
    JobFailed,
    RefusedTokens,
    SampledToken,
    Step,
    StepResult,
    TokenOutput,
    TokenRequest,
)
from zipage.scheduling.admission import admit_next, guarantee_running
from zipage.scheduling.compression import drop_job, free_retired_blocks
from zipage.scheduling.holdings import Holdings
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.lives import Counters, Lives, StallObserver, ignore_stall
from zipage.scheduling.output_lengths import OutputLengths
from zipage.scheduling.planning import begin_compressions, plan_request, waits_for_jobs
from zipage.scheduling.recovery import move_to_new_pool, take_back_jobs
from zipage.scheduling.request import NEVER, Request, RequestState
from zipage.scheduling.room import preempt_paused
from zipage.scheduling.step_plan import PlannedStep, StepPlan
from zipage.scheduling.stopping import ending_after

MAX_FAILED_JOBS = 3


class Scheduler:
    """Continuous batching over a block pool, by priority class, and first come, first served inside one.

    A request is *guaranteed* once its blocks are reserved and, where it can be compressed, it has a query slot; it
    never lacks either again. The others run on spare blocks, as long as they have no query to record, and give way to
    the guaranteed ones. The first of them is guaranteed as soon as that is possible, so every request ends.
    """

    def __init__(self, limits: SchedulerLimits, on_stall: StallObserver = ignore_stall) -> None:
        """Args: limits: of the engine; on_stall: told of every wait for a compression, once it is over."""
        self.limits = limits
        self.counters = Counters()
        self.lives = Lives(limits, self.counters, OutputLengths(limits.block_size), on_stall)
        self._num_arrived = 0
        # A heap; ended requests are taken out when they are many.
        self._deadlines: list[tuple[float, int]] = []
        # Planned steps that have not returned, oldest first.
        self._in_flight: deque[PlannedStep] = deque()

    # ---- requests in ------------------------------------------------------------------------------------------------

    def add(self, requests: Iterable[TokenRequest], now: float) -> list[RefusedTokens]:
        """Queue requests in order; returns those that are refused, of which nothing is kept."""
        self.lives.now, refused = now, []
        for message in requests:
            refusal = self.limits.refusal(message) or self._overflow(message)
            if refusal is not None:
                refused.append(refusal)
                continue
            max_length, max_blocks = self.limits.max_length(message), self.limits.max_blocks(message.params)
            self.lives.enter(Request.from_message(message, self._num_arrived, max_length, max_blocks, now))
            self._num_arrived += 1
            if message.params.deadline is not None:
                heapq.heappush(self._deadlines, (now + message.params.deadline, message.uid))
        if len(self._deadlines) > 2 * len(self.lives.unfinished) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self.lives.unfinished]
            heapq.heapify(self._deadlines)
        return refused

    def abort(self, uids: Iterable[int], now: float) -> list[TokenOutput]:
        """End requests; each live one answers with reason `abort`, the others are ignored."""
        self.lives.now = now
        live = [request for uid in dict.fromkeys(uids) if (request := self.lives.unfinished.get(uid)) is not None]
        return [self._end_early(request, "abort", now) for request in live]

    def expire(self, now: float) -> list[TokenOutput]:
        """End the requests whose deadline has passed; each answers with reason `deadline`."""
        self.lives.now, outputs = now, []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, uid = heapq.heappop(self._deadlines)
            if uid in self.lives.unfinished:
                outputs.append(self._end_early(self.lives.unfinished[uid], "deadline", now))
        return outputs

    def preempt(self, uids: Collection[int]) -> None:
        """Have running requests give back what they hold as soon as no step and no job touches them."""
        for request in self.lives.running:
            if request.uid in uids:
                request.is_paused = True

    def _overflow(self, message: TokenRequest) -> RefusedTokens | None:
        limit, unfinished = self.limits.max_waiting, len(self.lives.unfinished)
        if not limit or unfinished < self.limits.max_num_seqs + limit:
            return None
        text = (
            f"the engine is full: {unfinished} completions are unfinished, at most {self.limits.max_num_seqs} run "
            f"(max_num_seqs) and {limit} wait (max_waiting)"
        )
        return RefusedTokens(message.uid, text, None)

    # ---- steps and jobs ---------------------------------------------------------------------------------------------

    def plan(self) -> Step | None:
        """The next step, or None where enough are in flight or nothing can be computed.

        A step that is planned before the tokens of the last one are back feeds them to itself in the decode worker.
        Where a request turns out to have ended, such a step has computed one token for nothing, which is dropped.
        """
        if len(self._in_flight) >= self.limits.max_steps_in_flight:
            return None
        if not self.limits.overlap and waits_for_jobs(self.lives, len(self._in_flight)):
            return None
        step, before = self.lives.step, None
        # Who has given way, or is to be compressed, may let those go on that have been passed already.
        while not step.planned and before != (before := self._given_way()):
            step.short_class = None
            self._plan_tokens()
        if not step.planned:
            return None
        self._in_flight.append(PlannedStep(self.counters.steps, step.planned))
        self.lives.step = StepPlan()
        self.counters.steps += 1
        return step.build(self._in_flight[-1].step_id)

    def plan_jobs(self) -> list[Job]:
        """Jobs that can begin, because no step touches what they read and write; to be called after `plan`."""
        lives = self.lives
        jobs: list[Job] = []
        if not self.limits.overlap and self._in_flight:
            return jobs
        for request in [*lives.running, *lives.swapped.values()]:
            job = request.job
            if job is not None and not job.is_sent and request.steps_returned >= job.starts_after:
                job.is_sent = True
                job.num_sends += 1
                lives.at_work[request.uid] = request
                jobs.append(job.message)
        return jobs

    def finish_step(self, result: StepResult, now: float) -> list[TokenOutput]:
        """Take the tokens of the oldest step in flight; returns what the tokenizer is told of them."""
        self.lives.now, outputs = now, []
        if not self._in_flight or self._in_flight[0].step_id != result.step_id:
            raise RuntimeError(f"step {result.step_id} returned out of order")
        sampled = dict(zip(result.rows, result.tokens, strict=True))
        for request in self._in_flight.popleft().requests:
            request.steps_returned += 1
            token = sampled.get(request.row)
            if token is not None:
                request.pending_tokens -= 1
            if request.retiring is not None:
                free_retired_blocks(request, self.holdings)
            if request.is_ended:
                self.lives.release_when_quiet(request)
            elif token is not None:
                outputs.append(self._take_token(request, token, now))
        return outputs

    def finish_job(self, answer: JobAnswer, now: float) -> list[TokenOutput]:
        """Take the end of a job; returns the end of a request whose jobs have failed too often."""
        self.lives.now = now
        request = self.lives.at_work.pop(answer.uid)
        job = request.job
        if job is None:
            raise RuntimeError(f"the job of request {answer.uid} was done twice")
        job.is_sent = False
        if isinstance(answer, JobFailed):
            self.counters.failed_jobs += 1
        if request.is_ended:
            self.lives.release_when_quiet(request)
        elif isinstance(answer, JobFailed):
            return self._take_failure(request, now)
        elif isinstance(answer, CompressionDone):
            self.lives.finish_compression(request, job, answer)
        else:
            self.lives.finish_swap(request, job)
        return []

    # ---- workers that come again ------------------------------------------------------------------------------------

    def start_over(self, limits: SchedulerLimits, now: float) -> list[TokenOutput]:
        """Go on with a new decode worker, whose pool is empty: every request is computed again from its tokens.

        Steps and jobs of before are void; they must not be finished any more.

        Returns:
            The ends of requests that cannot go on, with reason `error`.
        """
        self.limits, self.lives.now = limits, now
        self._in_flight.clear()
        self.lives, hopeless = move_to_new_pool(self.lives, limits)
        return [self._end_early(request, "error", now) for request in hopeless]

    def resend_jobs(self, unfinished: Collection[int], now: float) -> list[TokenOutput]:
        """Have a new compression worker do what the one before it has not answered, and is not going to.

        Args:
            unfinished: requests whose stall jobs that worker may have begun; these have failed.
            now: the time.

        Returns:
            The ends of requests whose jobs have failed too often.
        """
        self.lives.now = now
        failed = take_back_jobs(self.lives, unfinished)
        reason = "the compression worker died"
        return [output for uid in failed for output in self.finish_job(JobFailed(uid, reason), now)]

    def _given_way(self) -> tuple[int, int]:
        return self.counters.preemptions, sum(request.is_pressed for request in self.lives.running)

    def _plan_tokens(self) -> None:
        """Fill the step, the decoding requests first, then those that prefill, then those that wait."""
        lives, tokens_left = self.lives, self.limits.max_num_batched_tokens
        lives.step.count_shadow_blocks(lives.running)
        preempt_paused(lives)
        is_line_open = guarantee_running(lives)
        begin_compressions(lives)
        for state in (RequestState.RUNNING, RequestState.PREFILLING):
            for request in list(lives.running):
                if tokens_left and request.state is state:
                    tokens_left -= plan_request(lives, request, tokens_left)
        while tokens_left and (admitted := admit_next(lives, is_line_open)) is not None:
            passes = admitted.is_guaranteed or (admitted.next_compression == NEVER and not admitted.preemptions)
            is_line_open = is_line_open and passes
            if admitted.state is RequestState.PREFILLING:
                tokens_left -= plan_request(lives, admitted, tokens_left)

    # ---- what it holds ----------------------------------------------------------------------------------------------

    @property
    def holdings(self) -> Holdings:
        return self.lives.holdings

    @property
    def num_waiting(self) -> int:
        return len(self.lives.waiting)

    @property
    def num_running(self) -> int:
        return len(self.lives.running)

    @property
    def num_compressing(self) -> int:
        return sum(request.state is RequestState.COMPRESSING for request in self.lives.running)

    @property
    def num_swapped(self) -> int:
        return len(self.lives.swapped)

    @property
    def newest_step(self) -> list[Request]:
        """The requests of the step that was planned last, if it has not returned."""
        return self._in_flight[-1].requests if self._in_flight else []

    @property
    def is_idle(self) -> bool:
        """Nothing waits, runs or drains."""
        return not (self.lives.unfinished or self.lives.draining or self._in_flight)

    def integrity_errors(self) -> list[str]:
        """What is wrong with the ownership of what requests hold; empty for a sound engine."""
        return self.holdings.integrity_errors(list(self.lives.holders()))

    # ---- tokens, failures and ends ----------------------------------------------------------------------------------

    def _take_token(self, request: Request, token: SampledToken, now: float) -> TokenOutput:
        request.token_ids.append(token.token_id)
        self.counters.output_tokens += 1
        if request.num_output_tokens == 1:
            request.first_token = now
        self.holdings.register_full_blocks(request)
        ending = ending_after(request)
        if ending is None:
            return TokenOutput(request.uid, token)
        self.lives.end(request, RequestState.FINISHED, now)
        return TokenOutput(request.uid, token, ending.reason, ending.stop_token_id, request.metrics())

    def _take_failure(self, request: Request, now: float) -> list[TokenOutput]:
        """Have a request computed again, a few times, whose job has failed."""
        request.failed_jobs += 1
        if request.failed_jobs > MAX_FAILED_JOBS:
            return [self._end_early(request, "error", now)]
        if request.state is RequestState.SWAPPED:
            del self.lives.swapped[request.uid]
            self.lives.start_again(request)
            return []
        drop_job(request, self.holdings)
        if request.is_quiet:
            self.lives.preempt(request)
        return []

    def _end_early(self, request: Request, reason: str, now: float) -> TokenOutput:
        self.lives.end(request, RequestState.ABORTED, now)
        return TokenOutput(request.uid, None, reason, None, request.metrics())
