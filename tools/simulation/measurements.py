"""What a simulation shows: times of requests, and numbers of them by what they do, integrated over virtual time."""

from collections import deque
from dataclasses import dataclass, field

from tools.simulation.simulation import Received, Sent
from zipage.engine_messages import Step, StepResult, TokenOutputs
from zipage.messages import RequestMetrics
from zipage.scheduling.compression import is_due
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.needs import allowed_tokens
from zipage.scheduling.request import JobKind, Request, RequestState
from zipage.scheduling.scheduler import Scheduler


@dataclass
class Integral:
    """A number of requests over time."""

    request_seconds: float = 0.0
    most: int = 0
    _count: int = 0

    def change(self, elapsed: float, count: int) -> None:
        """The number was what it was for `elapsed` seconds, and is `count` from here on."""
        self.request_seconds += elapsed * self._count
        self._count = count
        self.most = max(self.most, count)


@dataclass
class Measurements:
    """Watches a simulation.

    Attributes:
        running: requests that hold a row and are not swapped.
        stalled: of those, the ones that a compression keeps out of the step that is computed.
        without_slot: of those, the ones that no step in flight touches because they have no query slot.
        without_blocks: the others that no step in flight touches: blocks are short, or steps are full.
        ends: metrics of ended requests.
        last_end: seconds until the last of them had ended.
        rows_planned: requests of all steps, each once for every step.
    """

    running: Integral = field(default_factory=Integral)
    stalled: Integral = field(default_factory=Integral)
    without_slot: Integral = field(default_factory=Integral)
    without_blocks: Integral = field(default_factory=Integral)
    ends: list[RequestMetrics] = field(default_factory=list)
    last_end: float = 0.0
    rows_planned: int = 0
    _now: float = 0.0
    _held_back: set[Request] = field(default_factory=set)
    # Rows of the steps in flight, oldest first.
    _rows_in_flight: deque[set[int]] = field(default_factory=deque)

    def received(self, message: Received, now: float) -> None:
        """See that a step has returned."""
        if isinstance(message, StepResult):
            self._rows_in_flight.popleft()

    def sent(self, message: Sent, now: float) -> None:
        """Count the requests of a step, and take the metrics of those that end."""
        if isinstance(message, Step):
            self.rows_planned += len(message.work)
            self._rows_in_flight.append({work.row for work in message.work})
        elif isinstance(message, TokenOutputs):
            ends = [output.metrics for output in message.outputs if output.metrics is not None]
            self.ends += ends
            self.last_end = max([self.last_end, *(end.finished for end in ends)])

    def settled(self, scheduler: Scheduler, now: float) -> None:
        """Add what has held since the last message, and see what holds from here on."""
        elapsed, self._now = now - self._now, now
        # The oldest step in flight is the one that is computed; a row has one owner for as long as steps touch it.
        computed = self._rows_in_flight[0] if self._rows_in_flight else set()
        idle = [request for request in scheduler.lives.running if request.row not in computed]
        self._held_back = {request for request in idle if self._is_held_back(request, scheduler.limits)}
        self.running.change(elapsed, scheduler.num_running)
        self.stalled.change(elapsed, len(self._held_back))
        others = [request for request in idle if not request.in_flight and request not in self._held_back]
        without_slot = sum(lacks_slot(request, scheduler.limits) for request in others)
        self.without_slot.change(elapsed, without_slot)
        self.without_blocks.change(elapsed, len(others) - without_slot)

    def _is_held_back(self, request: Request, limits: SchedulerLimits) -> bool:
        # A compression that is done costs its request the time until its next step, which may queue, too.
        return is_stalled(request, limits) or (request in self._held_back and not request.is_paused)


def is_stalled(request: Request, limits: SchedulerLimits) -> bool:
    """Whether no step in flight touches a running request, for which one could be planned but for a compression.

    That is due and waits for blocks or for its worker, or is at work; in shadow mode the request has also filled the
    blocks behind those that are read.
    """
    if request.in_flight or request.is_paused:
        return False
    if request.state is RequestState.COMPRESSING:
        return True
    if request.job is not None:
        return request.job.kind is JobKind.SHADOW and allowed_tokens(request, limits) <= 0
    return is_due(request, limits)


def lacks_slot(request: Request, limits: SchedulerLimits) -> bool:
    """Whether a running request that no step in flight touches can compute nothing before it has a query slot."""
    return request.query_buffer < 0 and allowed_tokens(request, limits) <= 0
