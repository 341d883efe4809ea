"""Where every request is on its way from arrival to end, and what it holds there: the moves between those places."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from zipage.engine_messages import CompressionDone
from zipage.scheduling.compression import finish_compression
from zipage.scheduling.foresight import Foresight
from zipage.scheduling.holdings import Holdings
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.output_lengths import OutputLengths
from zipage.scheduling.request import NEVER, JobKind, OpenJob, Request, RequestState
from zipage.scheduling.request_line import RequestLine
from zipage.scheduling.step_plan import StepPlan
from zipage.scheduling.swapping import begin_swap_in, begin_swap_out


@dataclass
class Counters:
    """Totals since the engine started; `cached_tokens` are those of prompts that were not computed again."""

    steps: int = 0
    compressions: int = 0
    shadow_compressions: int = 0
    blocks_freed: int = 0
    stalled_seconds: float = 0.0
    failed_jobs: int = 0
    preemptions: int = 0
    swaps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


StallObserver = Callable[[Request, float, float], None]
"""`on_stall(request, seconds, now)`: the request has been passed over for a compression so many seconds up to now."""


def ignore_stall(_request: Request, _seconds: float, _now: float) -> None:
    """The `StallObserver` of a scheduler that nobody watches."""


class Lives:
    """Every request in its place, and the step that tells the decode worker of it.

    Attributes:
        unfinished: all that have not ended, by uid.
        waiting: those that are to be admitted, swapped ones among them.
        running: those that steps are planned for.
        swapped: those whose KV is in host memory or on the way there or back.
        draining: ended ones whose blocks a step or a job still touches.
        at_work: those whose job the compression worker has.
        lengths: of the completions that have ended.
        foresight: of what those that run will hold.
        step: the step that is being planned.
        now: the time of the last event, right after which a step is planned; in seconds of the caller's clock.
        on_stall: told of every wait of a request for its compression, once it is over.
    """

    def __init__(
        self, limits: SchedulerLimits, counters: Counters, lengths: OutputLengths, on_stall: StallObserver
    ) -> None:
        self.limits = limits
        self.on_stall = on_stall
        self.holdings = Holdings(limits)
        self.counters = counters
        self.unfinished: dict[int, Request] = {}
        self.waiting = RequestLine()
        self.running = RequestLine()
        self.swapped: dict[int, Request] = {}
        self.draining: dict[int, Request] = {}
        self.at_work: dict[int, Request] = {}
        self.lengths = lengths
        self.foresight = Foresight(limits, lengths)
        self.step = StepPlan()
        self.now = 0.0

    def holders(self) -> Iterator[Request]:
        """All requests that hold something."""
        yield from self.running
        yield from self.swapped.values()
        yield from self.draining.values()

    # ---- in ---------------------------------------------------------------------------------------------------------

    def enter(self, request: Request) -> None:
        """Queue a request that has arrived."""
        self.counters.prompt_tokens += request.prompt_length
        self.queue(request)

    def queue(self, request: Request) -> None:
        """Take in a request that holds nothing, to be computed from its first token."""
        self.holdings.begin_anew(request)
        self.unfinished[request.uid] = request
        self.waiting.add(request)

    def admit(self, request: Request) -> None:
        """Let a waiting request run, from its first token that is not cached."""
        self.waiting.remove(request)
        self.holdings.enter(request)
        request.move_to(RequestState.PREFILLING)
        self.running.add(request)
        self.step.admit(request)
        if request.next_compression != NEVER:
            # Without a query slot it records no queries, but attention is accumulated all the same.
            self.step.update_recording(request)
        if not request.preemptions:
            self.counters.cached_tokens += request.position

    def guarantee(self, request: Request) -> None:
        """Promise a running request what it needs to its end."""
        self.holdings.guarantee(request)
        if request.query_buffer >= 0:
            self.step.update_recording(request)

    def bring_back(self, request: Request) -> None:
        """Let a swapped request run; it does so once its KV has come back from host memory."""
        self.waiting.remove(request)
        begin_swap_in(request, self.holdings, self.step)

    # ---- out and back -----------------------------------------------------------------------------------------------

    def preempt(self, request: Request) -> None:
        """Take back what a request holds that nothing touches: its KV goes to host memory, or is computed again."""
        self.running.remove(request)
        self.end_stall(request)
        request.preemptions += 1
        self.counters.preemptions += 1
        keeps_cache = request.is_compressed and not request.is_broken
        if not keeps_cache or not self.holdings.take_host_place(request):
            self.start_again(request)
            return
        request.is_paused = request.is_pressed = request.in_place = False
        request.swaps += 1
        self.counters.swaps += 1
        self.step.release_row(self.holdings.release_row(request))
        self.swapped[request.uid] = request
        begin_swap_out(request)

    def start_again(self, request: Request) -> None:
        """Put a request that nothing touches back into the queue, to be computed from its tokens."""
        self._release(request)
        request.forget_cache()
        self.holdings.begin_anew(request)
        request.move_to(RequestState.WAITING)
        self.waiting.add(request)

    def finish_swap(self, request: Request, job: OpenJob) -> None:
        """Note that a swapped request's KV has arrived, in host memory or in its blocks."""
        if job.kind is JobKind.SWAP_OUT:
            self.holdings.release_cache(request)
            self.waiting.add(request)
            return
        request.job = None
        self.holdings.release_host_place(request)
        del self.swapped[request.uid]
        self.running.add(request)
        request.go_on()

    def send_job_again(self, request: Request, job: OpenJob) -> None:
        """Take back a job whose worker has died, for the next one to do if the request has not ended meanwhile."""
        del self.at_work[request.uid]
        job.is_sent = False
        if request.is_ended:
            self.release_when_quiet(request)

    def finish_compression(self, request: Request, job: OpenJob, done: CompressionDone) -> None:
        """Let a request go on with its survivors."""
        # The wait for this job, before the next one begins, which may be of the other kind.
        self._add_stall(request, request.stalls.count(self.now))
        finish_compression(request, job, done, self.holdings)
        self.step.update_table(request)
        self.counters.compressions += 1
        self.counters.blocks_freed += self.limits.blocks_for(job.num_entries) - (request.max_blocks - 1)
        if job.kind is JobKind.SHADOW:
            self.counters.shadow_compressions += 1
        else:
            self.step.update_recording(request)

    # ---- stalls -----------------------------------------------------------------------------------------------------

    def begin_stall(self, request: Request) -> None:
        """Note that no token of a request is planned, because a compression is due or not done."""
        request.stalls.begin(self.now)

    def end_stall(self, request: Request) -> None:
        """Note that, if no token of a request is planned, a compression is not the reason."""
        if request.stalls.since is not None:
            self._add_stall(request, request.stalls.end(self.now))

    def _add_stall(self, request: Request, seconds: float) -> None:
        if seconds > 0:
            self.counters.stalled_seconds += seconds
            self.on_stall(request, seconds, self.now)

    # ---- ends -------------------------------------------------------------------------------------------------------

    def end(self, request: Request, state: RequestState, now: float) -> None:
        """End a request, wherever it is."""
        place, job = request.state, request.job
        request.move_to(state)
        self.end_stall(request)
        request.finished = now
        del self.unfinished[request.uid]
        if place is RequestState.WAITING:
            self.waiting.remove(request)
            return
        self.lengths.note_end(request)
        if place is RequestState.SWAPPED:
            del self.swapped[request.uid]
            if job is None:
                self.waiting.remove(request)
        else:
            self.running.remove(request)
        self.draining[request.uid] = request
        self.release_when_quiet(request)

    def release_when_quiet(self, request: Request) -> None:
        """Free what an ended request holds once no step and no job touches it."""
        if not request.in_flight and not (request.job is not None and request.job.is_sent):
            del self.draining[request.uid]
            self._release(request)

    def _release(self, request: Request) -> None:
        if request.row >= 0:
            self.step.release_row(self.holdings.release_row(request))
        self.holdings.release_cache(request)
        self.holdings.release_host_place(request)
