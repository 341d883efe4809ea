"""What the scheduler does, as spans of the trace, with the requests that each of them is about."""

from collections.abc import Sequence

from zipage.engine_messages import CompressionJob, Job, JobAnswer, Step, StepResult, SwapIn, TokenOutput, TokenRequest
from zipage.scheduling.request import Request
from zipage.scheduling.scheduler import Scheduler
from zipage.tracing import Tracer, now

_LANE = "scheduler"


class SchedulerSpans:
    """Writes one scheduler's spans and counters, where tracing is on. A span ends now."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def added(self, start: int, requests: Sequence[TokenRequest]) -> None:
        """Requests have arrived."""
        if self._tracer.enabled:
            self._tracer.span(_LANE, "add", start, now(), uids=[request.uid for request in requests])

    def planned(self, start: int, step: Step, scheduler: Scheduler) -> None:
        """A step has been planned; its span names the requests that it admits."""
        if not self._tracer.enabled:
            return
        end, rows = now(), {admission.row for admission in step.admissions}
        admitted = [request.uid for request in scheduler.newest_step if request.row in rows] if rows else []
        tokens = sum(work.num_tokens for work in step.work)
        self._tracer.span(
            _LANE, "plan", start, end, step=step.step_id, rows=len(step.work), tokens=tokens, uids=admitted
        )
        self._count(end, scheduler)

    def finished_step(self, start: int, result: StepResult, outputs: Sequence[TokenOutput]) -> None:
        """A step has returned; its span names the requests that it ends."""
        if self._tracer.enabled:
            self._tracer.span(_LANE, "finish step", start, now(), step=result.step_id, uids=_ended(outputs))

    def began_job(self, start: int, job: Job) -> None:
        """A job leaves for the compression worker."""
        if self._tracer.enabled:
            self._tracer.span(_LANE, f"begin {job_kind(job)}", start, now(), uids=[job.uid])

    def finished_job(self, start: int, answer: JobAnswer, outputs: Sequence[TokenOutput]) -> None:
        """A job is done, or has failed; its span names the requests that end with it."""
        if self._tracer.enabled:
            self._tracer.span(_LANE, "finish job", start, now(), uids=[answer.uid], ended=_ended(outputs))

    def ended_early(self, name: str, start: int, outputs: Sequence[TokenOutput]) -> None:
        """Requests have ended that no step has ended."""
        if self._tracer.enabled:
            self._tracer.span(_LANE, name, start, now(), uids=_ended(outputs))

    def stalled(self, request: Request, seconds: float, now_seconds: float) -> None:
        """A request has been passed over for its compression, for so many seconds up to now."""
        if self._tracer.enabled:
            end, name = int(1e9 * now_seconds), "shadow" if request.stalls.is_shadow else "stall"
            self._tracer.span("stalled", name, end - int(1e9 * seconds), end, uids=[request.uid])

    def _count(self, time: int, scheduler: Scheduler) -> None:
        holdings = scheduler.holdings
        self._tracer.counter(
            "requests",
            time,
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            compressing=scheduler.num_compressing,
            swapped=scheduler.num_swapped,
        )
        self._tracer.counter("pool", time, blocks=holdings.blocks.num_used, slots=holdings.slots_used)


def _ended(outputs: Sequence[TokenOutput]) -> list[int]:
    return [output.uid for output in outputs if output.finish_reason is not None]


def job_kind(job: Job) -> str:
    """`stall`, `shadow`, `swap out` or `swap in`."""
    if isinstance(job, CompressionJob):
        return "stall" if job.is_in_place else "shadow"
    return "swap in" if isinstance(job, SwapIn) else "swap out"
