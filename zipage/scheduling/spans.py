"""What the scheduler does, as spans of the trace, with the requests that each of them is about."""

from collections.abc import Sequence

from zipage.messages import CompressionJob, Job, JobAnswer, Step, StepResult, SwapIn, TokenOutput, TokenRequest
from zipage.scheduling.scheduler import Scheduler
from zipage.tracing import Tracer, now

_LANE = "scheduler"


class SchedulerSpans:
    """Writes one scheduler's spans and counters, where tracing is on. A span ends now."""

    def __init__(self, tracer: Tracer, scheduler: Scheduler) -> None:
        self._tracer = tracer
        self._scheduler = scheduler

    def added(self, start: int, requests: Sequence[TokenRequest]) -> None:
        """Requests have arrived."""
        if self._tracer.enabled:
            self._tracer.span(_LANE, "add", start, now(), uids=[request.uid for request in requests])

    def planned(self, start: int, step: Step) -> None:
        """A step has been planned; its span names the requests that it admits."""
        if not self._tracer.enabled:
            return
        end, rows = now(), {admission.row for admission in step.admissions}
        admitted = [request.uid for request in self._scheduler.newest_step if request.row in rows] if rows else []
        tokens = sum(work.num_tokens for work in step.work)
        self._tracer.span(
            _LANE, "plan", start, end, step=step.step_id, rows=len(step.work), tokens=tokens, uids=admitted
        )
        self._count(end)

    def finished_step(self, start: int, result: StepResult, outputs: Sequence[TokenOutput]) -> None:
        """A step has returned; its span names the requests that it ends."""
        if self._tracer.enabled:
            ended = [output.uid for output in outputs if output.finish_reason is not None]
            self._tracer.span(_LANE, "finish step", start, now(), step=result.step_id, uids=ended)

    def began_job(self, start: int, job: Job) -> None:
        """A job leaves for the compression worker."""
        if self._tracer.enabled:
            self._tracer.span(_LANE, f"begin {job_kind(job)}", start, now(), uids=[job.uid])

    def finished_job(self, start: int, answer: JobAnswer) -> None:
        """A job is done, or has failed."""
        if self._tracer.enabled:
            self._tracer.span(_LANE, "finish job", start, now(), uids=[answer.uid])

    def _count(self, time: int) -> None:
        scheduler, holdings = self._scheduler, self._scheduler.holdings
        self._tracer.counter(
            "requests",
            time,
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            compressing=scheduler.num_compressing,
            swapped=scheduler.num_swapped,
        )
        self._tracer.counter("pool", time, blocks=holdings.blocks.num_used, slots=holdings.slots_used)


def job_kind(job: Job) -> str:
    """`stall`, `shadow`, `swap out` or `swap in`."""
    if isinstance(job, CompressionJob):
        return "stall" if job.is_in_place else "shadow"
    return "swap in" if isinstance(job, SwapIn) else "swap out"
