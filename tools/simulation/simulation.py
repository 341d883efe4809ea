"""A `Scheduler` in virtual time, given messages and asked for work just as the scheduler process does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tools.simulation.clock import EventQueue
from tools.simulation.cost_model import CostModel
from tools.simulation.decode_rows import DecodeRows
from tools.simulation.device import Device, Lane
from tools.simulation.workload import Event, Preempt, Workload
from zipage.engine_messages import (
    AbortTokens,
    CompressionDone,
    CompressionJob,
    Job,
    JobAnswer,
    JobFailed,
    RefusedTokens,
    Step,
    StepResult,
    SubmitTokens,
    SwapDone,
    TokenOutput,
    TokenOutputs,
    TokenRequest,
)
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.scheduler import Scheduler

DEADLINE_CHECK_SECONDS = 0.05


@dataclass(frozen=True)
class ExpireCheck:
    """The scheduler process looks for requests whose deadline has passed."""


Received = Event | StepResult | JobAnswer | ExpireCheck
Sent = Step | Job | TokenOutputs | RefusedTokens


class Observer(Protocol):
    """Who watches a simulation; times are virtual, in seconds."""

    def received(self, message: Received, now: float) -> None:
        """The scheduler is about to handle a message."""

    def sent(self, message: Sent, now: float) -> None:
        """The scheduler has sent a message."""

    def settled(self, scheduler: Scheduler, now: float) -> None:
        """The scheduler has handled a message and sent what can begin."""


class StuckError(RuntimeError):
    """Requests are left that will never end, or not before the time limit: a defect of the scheduler."""


class Simulation:
    """One scheduler, one decode worker, one compression worker, and the clients of a workload.

    The workers run on one device, a step after the other and a job after the other, steps and jobs side by side.
    """

    def __init__(
        self, limits: SchedulerLimits, costs: CostModel, workload: Workload, observers: Sequence[Observer] = ()
    ) -> None:
        self.scheduler = Scheduler(limits)
        self.rows = DecodeRows(workload.output_lengths)
        self._events = EventQueue()
        self.device = Device(self._events, costs.step_slowdown, costs.job_slowdown)
        self._costs = costs
        self._failing_jobs = workload.failing_jobs
        self._observers = observers
        self._num_jobs = 0
        # The scheduler is one process: what comes while it works waits.
        self._busy_until = 0.0
        for time, event in workload.events:
            self._events.at(time, partial(self._handle, event))

    def run(self, time_limit: float = math.inf) -> float:
        """Run until nothing is left to happen; returns when that was, in seconds.

        Raises:
            StuckError: something does not end, or not before `time_limit` seconds.
        """
        while (now := self._events.run_next()) is not None:
            if now > time_limit:
                raise StuckError(f"{self._what_is_left()} after {time_limit} s")
        if not self.scheduler.is_idle:
            raise StuckError(f"{self._what_is_left()}, and nothing happens any more")
        return self._busy_until

    # ---- the scheduler process --------------------------------------------------------------------------------------

    def _handle(self, message: Received, time: float) -> None:
        now = self._busy_until = max(time, self._busy_until)
        for observer in self._observers:
            observer.received(message, now)
        outputs = self._take(message, now)
        # Of all messages only a look at the deadlines can be about nothing.
        if outputs or not isinstance(message, ExpireCheck):
            self._send_work()
        if outputs:
            self._tell(TokenOutputs(outputs))
        for observer in self._observers:
            observer.settled(self.scheduler, self._busy_until)

    def _take(self, message: Received, now: float) -> list[TokenOutput]:
        match message:
            case StepResult():
                return self.scheduler.finish_step(message, now)
            case SubmitTokens(requests):
                self._submit(requests, now)
            case AbortTokens(uids):
                return self.scheduler.abort(uids, now)
            case Preempt(uids):
                self.scheduler.preempt(uids)
            case ExpireCheck():
                return self.scheduler.expire(now)
            case _:
                return self.scheduler.finish_job(message, now)
        return []

    def _submit(self, requests: list[TokenRequest], now: float) -> None:
        for refusal in self.scheduler.add(requests, now):
            self._tell(refusal)
        deadlines = {now + request.params.deadline for request in requests if request.params.deadline is not None}
        for deadline in sorted(deadlines):
            next_check = math.ceil(deadline / DEADLINE_CHECK_SECONDS) * DEADLINE_CHECK_SECONDS
            self._events.at(max(deadline, next_check), partial(self._handle, ExpireCheck()))

    def _send_work(self) -> None:
        while (step := self.scheduler.plan()) is not None:
            self._busy_until += len(step.work) * self._costs.scheduling_seconds
            self._send_step(step)
        for job in self.scheduler.plan_jobs():
            self._send_job(job)

    def _tell(self, message: Sent) -> None:
        for observer in self._observers:
            observer.sent(message, self._busy_until)

    # ---- the workers ------------------------------------------------------------------------------------------------

    def _send_step(self, step: Step) -> None:
        self._tell(step)
        result = self.rows.execute(step)
        seconds = self._costs.step_seconds(self.rows.num_tokens, self.rows.num_entries)
        self._give(self.device.steps, seconds, result)

    def _send_job(self, job: Job) -> None:
        self._tell(job)
        self._give(self.device.jobs, self._costs.job_seconds(job), self._answer(job))

    def _answer(self, job: Job) -> JobAnswer:
        self._num_jobs += 1
        if self._num_jobs - 1 in self._failing_jobs:
            return JobFailed(job.uid, "the workload says so")
        if isinstance(job, CompressionJob):
            return CompressionDone(job.uid, min(job.num_pinned, job.keep))
        return SwapDone(job.uid)

    def _give(self, lane: Lane, seconds: float, answer: StepResult | JobAnswer) -> None:
        """Send work to its worker, which answers when it is done."""
        latency = self._costs.message_latency

        def send_answer(now: float) -> None:
            self._events.at(now + latency, partial(self._handle, answer))

        self._events.at(self._busy_until + latency, partial(self.device.submit, lane, seconds, send_answer))

    def _what_is_left(self) -> str:
        scheduler = self.scheduler
        return f"{scheduler.num_running} running, {scheduler.num_waiting} waiting, {scheduler.num_swapped} swapped left"
